"""The public stateless functions: the contract of each op, its input checks, then dispatch to a backend.

No index reaches a kernel unchecked. All functions are deterministic on CPU tensors: the same inputs give the same bits
for the same number of threads, and the `cpu` backend for any number.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mfdmc_fast.ops import dispatch
from mfdmc_fast.ops.checks import (
    check_combine,
    check_indices,
    check_ratings,
    check_rows,
    check_same_kind,
    check_side,
    check_sides,
    check_vectors,
    columns_of,
    contiguous,
    view_of,
)
from mfdmc_fast.ops.posterior import fold_in, fold_in_factors, gibbs_sampler, posterior_scores
from mfdmc_fast.ops.types import Combine, FactorTensors, LossTerms, LossWeights, SideTensors

__all__ = [
    "batch_loss",
    "check_rows",
    "cluster_usage",
    "columns_of",
    "compact_columns",
    "embed",
    "fold_in",
    "fold_in_factors",
    "funkmf_loss",
    "gibbs_sampler",
    "posterior_scores",
    "score_pairs",
    "top_items",
    "view_of",
]


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
    check_sides(user, item, combine)
    check_indices(len(user.assignment_logits), len(item.assignment_logits), user_idx, item_idx, user.centers.device)
    check_ratings(ratings, user_idx, user.centers)
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
        check_vectors(name, {"bias": side.bias, "l2_scale": side.l2_scale}, len(side.factors))
    if user.factors.shape[1] != item.factors.shape[1] or (user.bias is None) != (item.bias is None):
        raise ValueError("both sides must have the same n_factors, and a bias on both sides or on neither")
    check_same_kind(
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
    check_indices(len(user.factors), len(item.factors), user_idx, item_idx, user.factors.device)
    check_ratings(ratings, user_idx, user.factors)
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
    check_sides(user, item, combine)
    check_indices(len(user.assignment_logits), len(item.assignment_logits), user_idx, item_idx, user.centers.device)
    chosen = dispatch.choose(
        "score_pairs", user.centers.device, user.centers.dtype, backend, columns_of(user, item), view_of(user, item)
    )
    with torch.no_grad():
        return cast(
            Tensor,
            chosen.ops["score_pairs"](
                contiguous(user),
                contiguous(item),
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
    check_side("side", side)
    check_combine(combine)
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
    check_same_kind(
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
    check_side("side", side)
    if among.dtype != torch.bool or among.shape != side.assignment_logits.shape[:1]:
        raise TypeError(f"among must be [{len(side.assignment_logits)}] bool, got {list(among.shape)} {among.dtype}")
    chosen = dispatch.choose("cluster_usage", side.centers.device, side.centers.dtype, backend, columns_of(side))
    with torch.no_grad():
        return cast(Tensor, chosen.ops["cluster_usage"](contiguous(side), among))


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
