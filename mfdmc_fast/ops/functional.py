"""The public stateless functions: the contract of each op, its input checks, then dispatch to a backend.

No index reaches a kernel unchecked. All functions are deterministic on CPU tensors: the same inputs give the same bits
for the same number of threads, and the `cpu` backend for any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.ops import dispatch
from mfdmc_fast.ops.types import (
    Combine,
    FactorTensors,
    FeatureBags,
    GibbsSampler,
    LossTerms,
    LossWeights,
    RowPrior,
    RowRatings,
    SideTensors,
)


def batch_loss(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine = "concat",
    weights: LossWeights = LossWeights(),
    spread_margin: float = 1.0,
    backend: str = "auto",
) -> LossTerms:
    """Loss terms of one batch of ratings (the objective of MFDMC, arXiv:2504.14565, with the gaps filled by this
    project).

    The batch mean of an entity term is the sum over the two sides of the mean over the batch's ratings, so an entity
    counts once per rating it has in the batch. An empty batch gives zeros.

    Args:
        user: parameters of the user side: assignment_logits [n_users, S_u], centers [S_u, d], bias [n_users] or None,
            l2_scale [n_users] or None.
        item: the same for items; both sides have equally many views and the same d, dtype and device.
        global_mean: rating points, added to every prediction.
        user_idx: [B] int64, rows of the user side; repeats allowed, any order.
        item_idx: [B] int64, rows of the item side.
        ratings: [B], dtype and device of the parameters.
        combine: `concat` (views meet only their counterpart) or `sum`.
        weights: weights of the terms in `total`.
        spread_margin: distance between two centers of a view beyond which they do not repel each other.
        backend: a backend's name or `auto`.

    Returns:
        LossTerms of scalars. Gradients flow to logits, centers and biases through `total`; on the reference backend
        through every term.

    Raises:
        ValueError, TypeError, IndexError: shapes, dtypes or indices do not fit; the message names the argument.
    """
    _check_sides(user, item, combine)
    _check_indices(len(user.assignment_logits), len(item.assignment_logits), user_idx, item_idx, user.centers.device)
    _check_ratings(ratings, user_idx, user.centers)
    if not spread_margin >= 0:
        raise ValueError(f"spread_margin must be 0 or more, got {spread_margin}")
    chosen = dispatch.choose(
        "batch_loss", user.centers.device, user.centers.dtype, backend, columns_of(user, item), view_of(user, item)
    )
    terms = chosen.ops["batch_loss"](
        user,
        item,
        global_mean,
        user_idx,
        item_idx,
        ratings,
        combine=combine,
        weights=weights,
        spread_margin=spread_margin,
    )
    return cast(LossTerms, terms)


def funkmf_loss(
    user: FactorTensors,
    item: FactorTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    weights: LossWeights = LossWeights(),
    backend: str = "auto",
) -> LossTerms:
    """Loss terms of FunkMF: squared error of global_mean + biases + p_u · q_i, and the batch-mean L2 terms.

    Args:
        user: factors [n_users, n_factors], bias [n_users] or None, l2_scale [n_users] or None.
        item: the same for items, same n_factors, dtype and device.
        global_mean, user_idx, item_idx, ratings, backend: as in `batch_loss`.
        weights: only `l2` and `bias_l2` are used; the others must be 0.

    Returns:
        LossTerms of scalars; `spread`, `proximity` and `entropy` are 0. Gradients flow to factors and biases.
    """
    for name, side in (("user", user), ("item", item)):
        if side.factors.ndim != 2 or not side.factors.is_floating_point():
            raise TypeError(f"{name}.factors must be a floating matrix [n, n_factors], got {list(side.factors.shape)}")
        _check_vectors(name, {"bias": side.bias, "l2_scale": side.l2_scale}, len(side.factors))
    if user.factors.shape[1] != item.factors.shape[1] or (user.bias is None) != (item.bias is None):
        raise ValueError("both sides must have the same n_factors, and a bias on both sides or on neither")
    _check_same_kind(
        user.factors,
        {
            "user.bias": user.bias,
            "user.l2_scale": user.l2_scale,
            "item.factors": item.factors,
            "item.bias": item.bias,
            "item.l2_scale": item.l2_scale,
        },
    )
    if any((weights.spread, weights.proximity, weights.entropy)):
        raise ValueError("FunkMF has no clusters: weights.spread, proximity and entropy must be 0")
    _check_indices(len(user.factors), len(item.factors), user_idx, item_idx, user.factors.device)
    _check_ratings(ratings, user_idx, user.factors)
    chosen = dispatch.choose("funkmf_loss", user.factors.device, user.factors.dtype, backend, user.factors.shape[1])
    terms = chosen.ops["funkmf_loss"](user, item, global_mean, user_idx, item_idx, ratings, weights=weights)
    return cast(LossTerms, terms)


def score_pairs(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    *,
    combine: Combine = "concat",
    backend: str = "auto",
) -> Tensor:
    """Predicted ratings z_u · z_i + global_mean + biases, not clipped. No gradients: use `batch_loss` to train.

    Args: as in `batch_loss`.

    Returns:
        [B], dtype of the parameters.

    Raises:
        ValueError, TypeError, IndexError: shapes, dtypes or indices do not fit; the message names the argument.
    """
    _check_sides(user, item, combine)
    _check_indices(len(user.assignment_logits), len(item.assignment_logits), user_idx, item_idx, user.centers.device)
    chosen = dispatch.choose(
        "score_pairs", user.centers.device, user.centers.dtype, backend, columns_of(user, item), view_of(user, item)
    )
    with torch.no_grad():
        return cast(
            Tensor,
            chosen.ops["score_pairs"](
                _contiguous(user),
                _contiguous(item),
                global_mean,
                user_idx.contiguous(),
                item_idx.contiguous(),
                combine=combine,
            ),
        )


def embed(
    side: SideTensors, rows: Tensor | None = None, *, combine: Combine = "concat", backend: str = "auto"
) -> Tensor:
    """Embeddings of entities, Eq. 2 of the paper with the views combined. Differentiable.

    Args:
        side: parameters of one side.
        rows: [R] int64, or None for all n entities.
        combine: `concat` or `sum`.

    Returns:
        [R, V*d] for `concat`, [R, d] for `sum`.
    """
    _check_side("side", side)
    _check_combine(combine)
    if rows is not None:
        check_rows("rows", rows, len(side.assignment_logits))
    chosen = dispatch.choose("embed", side.centers.device, side.centers.dtype, backend)
    return cast(Tensor, chosen.ops["embed"](side, rows, combine=combine))


def top_items(
    user_embeddings: Tensor,
    item_embeddings: Tensor,
    item_bias: Tensor | None,
    n: int,
    *,
    exclude_offsets: Tensor | None = None,
    exclude_items: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The n items with the highest z_u · z_i + b_i for each user, best first; equal scores in item order.

    What is constant for a user (global mean, user bias) does not change the order and is left to the caller.

    Args:
        user_embeddings: [U, D] floating.
        item_embeddings: [M, D], same dtype and device.
        item_bias: [M] or None.
        n: items wanted per user, at least 1; at most M are returned.
        exclude_offsets: [U + 1] int64, or None; user u must not get exclude_items[offsets[u] : offsets[u + 1]].
        exclude_items: int64 rows of items; given exactly when `exclude_offsets` is.

    Returns:
        (items [U, min(n, M)] int64, scores [U, min(n, M)]). Where a user has fewer candidates left, the tail is item -1
        with score -inf.
    """
    if user_embeddings.ndim != 2 or item_embeddings.ndim != 2 or user_embeddings.shape[1] != item_embeddings.shape[1]:
        raise ValueError(
            "user_embeddings [U, D] and item_embeddings [M, D] must be matrices with the same D,"
            f" got {list(user_embeddings.shape)} and {list(item_embeddings.shape)}"
        )
    _check_same_kind(
        user_embeddings,
        {"user_embeddings": user_embeddings, "item_embeddings": item_embeddings, "item_bias": item_bias},
    )
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if item_bias is not None and item_bias.shape != (len(item_embeddings),):
        raise ValueError(f"item_bias must be [{len(item_embeddings)}], got {list(item_bias.shape)}")
    if (exclude_offsets is None) != (exclude_items is None):
        raise ValueError("give both exclude_offsets and exclude_items, or neither")
    if exclude_offsets is not None and exclude_items is not None:
        check_rows("exclude_items", exclude_items, len(item_embeddings))
        offsets_fit = (
            exclude_offsets.dtype == torch.int64
            and exclude_offsets.shape == (len(user_embeddings) + 1,)
            and int(exclude_offsets[0]) == 0
            and int(exclude_offsets[-1]) == len(exclude_items)
            and bool((exclude_offsets.diff() >= 0).all())
        )
        if not offsets_fit:
            raise ValueError(
                f"exclude_offsets must be [{len(user_embeddings) + 1}], ascending from 0 to {len(exclude_items)}"
            )
    chosen = dispatch.choose("top_items", user_embeddings.device, user_embeddings.dtype, backend)
    with torch.no_grad():
        return cast(
            tuple[Tensor, Tensor],
            chosen.ops["top_items"](
                user_embeddings,
                item_embeddings,
                item_bias,
                n,
                exclude_offsets=exclude_offsets,
                exclude_items=exclude_items,
            ),
        )


def fold_in(
    side: SideTensors,
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    global_mean: float,
    own: RowRatings,
    prior: RowPrior,
    *,
    combine: Combine = "concat",
    weights: LossWeights = LossWeights(),
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Assignment logits and biases of some rows from their ratings, with the centers and the other side as they are.

    Minimizes for each row, x being its embedding and bias, (squared errors of its ratings + (x - prior mean)'
    precision (x - prior mean)) / number of its ratings + proximity + entropy, by one step of Adam on the logits for
    each of `rates`; the bias has its best value all the time. A row without ratings follows the prior.

    Args:
        side: assignment_logits [R, S] to start from, centers [S, d], n_clusters; bias and l2_scale are not used.
        partner_embeddings: [M, D] embeddings of the other side, dtype and device of the parameters.
        partner_bias: [M], or None: then the rows have none either.
        global_mean: rating points.
        own: the ratings of the R rows, R being at least 1.
        prior: of the rows, U = D + 1 with biases, else D.
        combine: `concat` or `sum`.
        weights: only `proximity` and `entropy` are used; the others must be 0.
        rates: learning rate of every step.
        betas, epsilon: Adam's.
        backend: a backend's name or `auto`.

    Returns:
        (assignment logits [R, S], bias [R] or None). No input gets a gradient. Deterministic.

    Raises:
        ValueError, TypeError, IndexError: shapes, dtypes or indices do not fit; the message names the argument.
    """
    _check_side("side", side)
    _check_combine(combine)
    n_views, view_dim = len(side.n_clusters), side.centers.shape[1]
    dim = n_views * view_dim if combine == "concat" else view_dim
    _check_row_problem(len(side.assignment_logits), dim, partner_embeddings, partner_bias, own, prior, side.centers)
    if any((weights.spread, weights.l2, weights.bias_l2)):
        raise ValueError("centers are fixed and the prior is given: weights.spread, l2 and bias_l2 must be 0")
    chosen = dispatch.choose("fold_in", side.centers.device, side.centers.dtype, backend, columns_of(side))
    return cast(
        tuple[Tensor, Tensor | None],
        chosen.ops["fold_in"](
            side._replace(centers=side.centers.detach()),
            partner_embeddings.detach(),
            None if partner_bias is None else partner_bias.detach(),
            global_mean,
            own,
            prior,
            combine=combine,
            weights=weights,
            rates=rates,
            betas=betas,
            epsilon=epsilon,
        ),
    )


def fold_in_factors(
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    global_mean: float,
    own: RowRatings,
    prior: RowPrior,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The same for rows of free factors, without clusters: the exact minimum of squared errors and prior.

    Args: as in `fold_in`, with D factors.

    Returns:
        (factors [R, D], bias [R] or None). No input gets a gradient. Deterministic.

    Raises:
        ValueError, TypeError, IndexError: shapes, dtypes or indices do not fit; the message names the argument.
    """
    dim = partner_embeddings.shape[-1]
    _check_row_problem(len(prior.means), dim, partner_embeddings, partner_bias, own, prior, prior.means)
    chosen = dispatch.choose("fold_in_factors", prior.means.device, prior.means.dtype, backend)
    with torch.no_grad():
        return cast(
            tuple[Tensor, Tensor | None],
            chosen.ops["fold_in_factors"](partner_embeddings, partner_bias, global_mean, own, prior),
        )


def posterior_scores(
    user_draws: Tensor,  # [D, n_users, rank + 1]
    item_draws: Tensor,  # [D, n_items, rank + 1]
    global_mean: float,
    user_idx: Tensor,  # [B]
    item_idx: Tensor,  # [B]
    *,
    scale: tuple[float, float],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Mean and standard deviation, over D draws, of the ratings that each draw predicts, clipped to the scale.

    Args:
        user_draws, item_draws: factors and then the bias of every entity, one floating dtype and device.
        global_mean: added to every prediction.
        user_idx, item_idx: [B] int64.
        scale: lowest and highest rating.
        backend: a backend's name or `auto`.

    Returns:
        [B] and [B] in the dtype of the draws. No input gets a gradient. Deterministic.

    Raises:
        ValueError, TypeError: shapes or dtypes do not fit. IndexError: an index lies outside its table.
    """
    _check_same_kind(user_draws, {"user_draws": user_draws, "item_draws": item_draws})
    shapes = user_draws.shape, item_draws.shape
    if not all(len(s) == 3 and s[0] >= 1 and s[2] >= 2 for s in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            "user_draws and item_draws must be [draws, entities, rank + 1] with equally many draws and factors,"
            f" got {list(shapes[0])} and {list(shapes[1])}"
        )
    _check_indices(shapes[0][1], shapes[1][1], user_idx, item_idx, user_draws.device)
    chosen = dispatch.choose("posterior_scores", user_draws.device, user_draws.dtype, backend)
    with torch.no_grad():
        return cast(
            tuple[Tensor, Tensor],
            chosen.ops["posterior_scores"](
                user_draws.detach().contiguous(),
                item_draws.detach().contiguous(),
                global_mean,
                user_idx.contiguous(),
                item_idx.contiguous(),
                scale=scale,
            ),
        )


def gibbs_sampler(
    user_offsets: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
    ratings: npt.NDArray[np.float32],
    *,
    n_items: int,
    mean: float,
    rank: int,
    seed: int,
    implicit: bool = False,
    noise_degrees: float = 0.0,
    user_bags: Sequence[FeatureBags] = (),
    item_bags: Sequence[FeatureBags] = (),
    backend: str = "auto",
) -> GibbsSampler:
    """A Gibbs sampler for rating(u, i) = mean + b_u + b_i + p_u · q_i + noise; `ops/README.md` has the model.

    Args:
        user_offsets: [n_users + 1]; user u has the ratings user_offsets[u] : user_offsets[u + 1].
        items: [N] rows of items; N is at least 1, and a pair may be there more than once.
        ratings: [N] rating points.
        n_items: rows of the item side.
        mean: of the ratings.
        rank: factors of an entity, 1 or more; the `cpu` backend takes at most `native.MAX_RANK`.
        seed: 0 to 2^64 - 1. The same seed gives the same draws: on the `cpu` backend the same bits for any number of
            threads, and on other instruction sets and backends the same numbers but for rounding, which grows sweep by
            sweep.
        implicit: users have the items that they rated as features, items the users.
        noise_degrees: the noise precision of a rating is multiplied by a weight of its user and one of its item, whose
            prior is Gamma with this many degrees of freedom, 2 or more, and the mean 1; 0: all weights are 1.
        user_bags, item_bags: further blocks of features.
        backend: a backend's name or `auto`.

    Returns:
        The sampler, before its first draw. The `cpu` backend shares the memory of the arrays and needs them contiguous.

    Raises:
        ValueError: shapes, ranks or offsets do not fit. TypeError: a dtype or layout does not. IndexError: a row lies
            outside its table.
    """
    _check_groups("items", user_offsets, items, n_items)
    for name, bags, n in (("user_bags", user_bags, len(user_offsets) - 1), ("item_bags", item_bags, n_items)):
        for b, bag in enumerate(bags):
            _check_groups(f"{name}[{b}]", *bag, n)
    if ratings.dtype != np.float32:
        raise TypeError(f"ratings must be float32, not {ratings.dtype}")
    if ratings.shape != items.shape or not len(ratings):
        raise ValueError(f"ratings must be one or more, as many as items ({len(items)}), got {list(ratings.shape)}")
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, not {rank}")
    chosen = dispatch.choose("gibbs_sampler", torch.device("cpu"), torch.float32, backend)
    return cast(
        GibbsSampler,
        chosen.ops["gibbs_sampler"](
            user_offsets,
            items,
            ratings,
            n_items=n_items,
            mean=mean,
            rank=rank,
            seed=seed,
            implicit=implicit,
            noise_degrees=noise_degrees,
            user_bags=user_bags,
            item_bags=item_bags,
        ),
    )


def cluster_usage(side: SideTensors, among: Tensor, *, backend: str = "auto") -> Tensor:
    """Mean assignment weight of each cluster over some entities: what pruning goes by.

    Args:
        side: assignment_logits [n, S], centers [S, d].
        among: [n] bool, the entities that count.
        backend: a backend's name or `auto`.

    Returns:
        [S] float64, adding up to 1 in each view; NaN where no entity counts. No input gets a gradient.

    Raises:
        ValueError, TypeError: shapes or dtypes do not fit; the message names the argument.
    """
    _check_side("side", side)
    if among.dtype != torch.bool or among.shape != side.assignment_logits.shape[:1]:
        raise TypeError(f"among must be [{len(side.assignment_logits)}] bool, got {list(among.shape)} {among.dtype}")
    chosen = dispatch.choose("cluster_usage", side.centers.device, side.centers.dtype, backend, columns_of(side))
    with torch.no_grad():
        return cast(Tensor, chosen.ops["cluster_usage"](_contiguous(side), among))


def compact_columns(table: Tensor, keep: Tensor, *, backend: str = "auto") -> Tensor:
    """Move the kept columns of a table to the front of its own memory: what pruning does to logits and their moments.

    Args:
        table: [n, columns], contiguous; its content is overwritten.
        keep: [k] int64, ascending, on the same device.
        backend: a backend's name or `auto`.

    Returns:
        [n, k], a contiguous view of the kept part with the same `data_ptr()`. No input gets a gradient.

    Raises:
        ValueError, TypeError, IndexError: the table is not contiguous, or a column outside it or out of order.
    """
    if table.ndim != 2 or not table.is_contiguous():
        raise ValueError(f"only a contiguous table [n, columns] can be compacted, got {list(table.shape)}")
    check_rows("keep", keep, table.shape[1])
    if keep.device != table.device or not bool((keep.diff() > 0).all()):
        raise ValueError(f"keep must ascend and be on {table.device}, as the table is")
    chosen = dispatch.choose("compact_columns", table.device, table.dtype, backend, table.shape[1])
    with torch.no_grad():
        return cast(Tensor, chosen.ops["compact_columns"](table, keep.contiguous()))


def columns_of(*sides: SideTensors) -> int:
    """The larger of the clusters of a side and the numbers of a `concat` embedding: what limits some kernels."""
    return max(max(sum(s.n_clusters), len(s.n_clusters) * s.centers.shape[1]) for s in sides)


def view_of(*sides: SideTensors) -> int:
    """Numbers in the centers of the largest view, both lengths rounded up to powers of 2: what limits others."""
    lengths = [(max(s.n_clusters), s.centers.shape[1]) for s in sides]
    return max(1 << ((k - 1).bit_length() + (d - 1).bit_length()) for k, d in lengths)


def _contiguous(side: SideTensors) -> SideTensors:
    return SideTensors(
        side.assignment_logits.detach().contiguous(),
        side.centers.detach().contiguous(),
        side.n_clusters,
        None if side.bias is None else side.bias.detach().contiguous(),
    )


def _check_side(name: str, side: SideTensors) -> None:
    total = sum(side.n_clusters)
    if not side.n_clusters or min(side.n_clusters) < 1:
        raise ValueError(f"{name}.n_clusters must hold at least one view and one cluster a view, got {side.n_clusters}")
    if side.assignment_logits.ndim != 2 or side.assignment_logits.shape[1] != total:
        raise ValueError(f"{name}.assignment_logits must be [n, {total}], got {list(side.assignment_logits.shape)}")
    if side.centers.ndim != 2 or len(side.centers) != total or side.centers.shape[1] < 1:
        raise ValueError(f"{name}.centers must be [{total}, d], got {list(side.centers.shape)}")
    _check_vectors(name, {"bias": side.bias, "l2_scale": side.l2_scale}, len(side.assignment_logits))
    for tensor in side:
        if isinstance(tensor, Tensor) and not (
            tensor.is_floating_point() and tensor.dtype == side.centers.dtype and tensor.device == side.centers.device
        ):
            raise TypeError(
                f"tensors of {name} must share one floating dtype and device: got {tensor.dtype} on {tensor.device}"
                f" beside {side.centers.dtype} on {side.centers.device}"
            )


def _check_vectors(name: str, vectors: dict[str, Tensor | None], n: int) -> None:
    for field, vector in vectors.items():
        if vector is not None and vector.shape != (n,):
            raise ValueError(f"{name}.{field} must be [{n}], got {list(vector.shape)}")


def _check_combine(combine: str) -> None:
    if combine not in ("concat", "sum"):
        raise ValueError(f"combine must be 'concat' or 'sum', got {combine!r}")


def _check_same_kind(expected: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise `TypeError` unless all tensors that are given have the floating dtype and the device of `expected`."""
    for name, tensor in tensors.items():
        if tensor is None or (
            tensor.is_floating_point() and tensor.dtype == expected.dtype and tensor.device == expected.device
        ):
            continue
        raise TypeError(
            f"{name} must have one floating dtype and device with the others: got {tensor.dtype} on {tensor.device}"
            f" beside {expected.dtype} on {expected.device}"
        )


def _check_sides(user: SideTensors, item: SideTensors, combine: str) -> None:
    _check_side("user", user)
    _check_side("item", item)
    _check_combine(combine)
    if user.centers.dtype != item.centers.dtype or user.centers.device != item.centers.device:
        raise TypeError(
            f"both sides must share dtype and device, got {user.centers.dtype} on {user.centers.device}"
            f" and {item.centers.dtype} on {item.centers.device}"
        )
    if len(user.n_clusters) != len(item.n_clusters) or user.centers.shape[1] != item.centers.shape[1]:
        raise ValueError(
            "both sides must have equally many views and the same view_dim, got"
            f" {len(user.n_clusters)} views of {user.centers.shape[1]} and"
            f" {len(item.n_clusters)} views of {item.centers.shape[1]}"
        )
    if (user.bias is None) != (item.bias is None):
        raise ValueError("give a bias on both sides or on neither")


def _check_indices(n_users: int, n_items: int, user_idx: Tensor, item_idx: Tensor, device: torch.device) -> None:
    check_rows("user_idx", user_idx, n_users)
    check_rows("item_idx", item_idx, n_items)
    if user_idx.shape != item_idx.shape:
        raise ValueError(f"user_idx and item_idx must be equally long, got {len(user_idx)} and {len(item_idx)}")
    if user_idx.device != device or item_idx.device != device:
        raise ValueError(f"user_idx and item_idx must be on {device}, as the parameters are")


def _check_ratings(ratings: Tensor, user_idx: Tensor, parameter: Tensor) -> None:
    if ratings.shape != user_idx.shape or ratings.dtype != parameter.dtype or ratings.device != parameter.device:
        raise ValueError(
            f"ratings must be [{len(user_idx)}] {parameter.dtype} on {parameter.device},"
            f" got {list(ratings.shape)} {ratings.dtype} on {ratings.device}"
        )


def _check_row_problem(
    n: int,
    dim: int,
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    own: RowRatings,
    prior: RowPrior,
    expected: Tensor,
) -> None:
    """Raise unless the arguments of `fold_in` fit n rows with embeddings of `dim` numbers, in `expected`'s dtype."""
    if partner_embeddings.ndim != 2 or partner_embeddings.shape[1] != dim:
        raise ValueError(f"partner_embeddings must be [M, {dim}], got {list(partner_embeddings.shape)}")
    _check_vectors("partners", {"bias": partner_bias}, len(partner_embeddings))
    unknowns = dim + (partner_bias is not None)
    if prior.means.shape != (n, unknowns) or prior.precision.shape != (unknowns, unknowns):
        raise ValueError(
            f"prior.means must be [{n}, {unknowns}] and prior.precision [{unknowns}, {unknowns}],"
            f" got {list(prior.means.shape)} and {list(prior.precision.shape)}"
        )
    _check_same_kind(
        expected,
        {
            "partner_embeddings": partner_embeddings,
            "partner_bias": partner_bias,
            "own.ratings": own.ratings,
            "prior.means": prior.means,
            "prior.precision": prior.precision,
        },
    )
    _check_groups("own.partners", own.offsets.cpu().numpy(), own.partners.cpu().numpy(), len(partner_embeddings))
    if own.offsets.shape != (n + 1,) or own.ratings.shape != own.partners.shape:
        raise ValueError(
            f"own must have offsets [{n + 1}] and as many ratings as partners, got {list(own.offsets.shape)},"
            f" {list(own.ratings.shape)} and {list(own.partners.shape)}"
        )


def _check_groups(name: str, offsets: npt.NDArray[np.int64], members: npt.NDArray[np.int32], n: int) -> None:
    """Raise unless `members` are int32 rows in [0, n) and group g of them is members[offsets[g] : offsets[g + 1]]."""
    for array, dtype in ((offsets, np.int64), (members, np.int32)):
        if array.ndim != 1 or array.dtype != dtype:
            raise TypeError(f"{name}: expected a vector of {dtype.__name__}, got {list(array.shape)} {array.dtype}")
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(members) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{name}: offsets must ascend from 0 to the number of members, {len(members)}")
    outside = np.flatnonzero((members < 0) | (members >= n))
    if len(outside):
        raise IndexError(f"{name}[{outside[0]}] is {members[outside[0]]}, outside [0, {n})")


def check_rows(name: str, rows: Tensor, n: int) -> None:
    """Raise TypeError or IndexError unless `rows` is a vector of int64 in [0, n); the message has the position."""
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise TypeError(f"{name} must be a vector of int64, got {list(rows.shape)} {rows.dtype}")
    if len(rows):
        low, high = (int(x) for x in rows.aminmax())
        if low < 0 or high >= n:
            wrong = low if low < 0 else high
            position = int((rows == wrong).nonzero()[0])
            raise IndexError(f"{name}[{position}] is {wrong}, but there are {n} rows (0 to {max(n - 1, 0)})")
