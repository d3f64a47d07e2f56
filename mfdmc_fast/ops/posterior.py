"""The public functions whose rows have a prior: fold-in, the Gibbs sampler and the scores of its draws.

`functional` has the others, and these by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.ops import dispatch
from mfdmc_fast.ops.checks import (
    check_combine,
    check_groups,
    check_indices,
    check_row_problem,
    check_same_kind,
    check_side,
    columns_of,
)
from mfdmc_fast.ops.types import Combine, FeatureBags, GibbsSampler, LossWeights, RowPrior, RowRatings, SideTensors


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
    check_side("side", side)
    check_combine(combine)
    n_views, view_dim = len(side.n_clusters), side.centers.shape[1]
    dim = n_views * view_dim if combine == "concat" else view_dim
    check_row_problem(len(side.assignment_logits), dim, partner_embeddings, partner_bias, own, prior, side.centers)
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
    check_row_problem(len(prior.means), dim, partner_embeddings, partner_bias, own, prior, prior.means)
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
    check_same_kind(user_draws, {"user_draws": user_draws, "item_draws": item_draws})
    shapes = user_draws.shape, item_draws.shape
    if not all(len(s) == 3 and s[0] >= 1 and s[2] >= 2 for s in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            "user_draws and item_draws must be [draws, entities, rank + 1] with equally many draws and factors,"
            f" got {list(shapes[0])} and {list(shapes[1])}"
        )
    check_indices(shapes[0][1], shapes[1][1], user_idx, item_idx, user_draws.device)
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
    check_groups("items", user_offsets, items, n_items)
    for name, bags, n in (("user_bags", user_bags, len(user_offsets) - 1), ("item_bags", item_bags, n_items)):
        for b, bag in enumerate(bags):
            check_groups(f"{name}[{b}]", *bag, n)
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
