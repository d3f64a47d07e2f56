"""The oracle: every op in plain torch, for any floating dtype and device, differentiated by torch itself.

It favours being obviously right over being fast, and it imports torch alone. The equations and the symbol table are in
README.md of this folder. `batch_loss` and `score_pairs` work on the *distinct* entities of a batch, because every
entity term is a mean over the ratings of the batch: an entity with c ratings among B weighs c / B.

Gathers use `index_select`, whose CPU backward adds rows in a fixed order; plain indexing would scatter with float
atomics when several threads run, and the same seed would not give the same model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfdmc_fast.ops.types import Combine, FactorTensors, LossTerms, LossWeights, RowPrior, RowRatings, SideTensors

# rows of a table moved per step: bounds the temporary copy of a compaction
_ROWS_PER_BLOCK = 65_536


def log_assignment_weights(assignment_logits: Tensor, n_clusters: tuple[int, ...]) -> Tensor:
    """Logarithm of the assignment weights, cluster-major: log-softmax of the logits inside each view.

    Args:
        assignment_logits: [n, S] floating, S = sum(n_clusters).
        n_clusters: active clusters of each view.

    Returns:
        [S, n], same dtype; finite also where a weight underflows to 0.
    """
    # cluster-major, because torch's softmax vectorizes over what follows its dimension, not over a short last one
    by_cluster = assignment_logits.T.contiguous()
    return torch.cat([torch.log_softmax(logits, dim=0) for logits in by_cluster.split(n_clusters)])


def assignment_weights(assignment_logits: Tensor, n_clusters: tuple[int, ...]) -> Tensor:
    """Softmax of the logits inside each view: [n, S] → [n, S]; each view's columns sum to 1."""
    return log_assignment_weights(assignment_logits, n_clusters).exp().T


def cluster_usage(side: SideTensors, among: Tensor) -> Tensor:
    """Mean assignment weights [S]; see `mfdmc_fast.ops.functional.cluster_usage` for the contract."""
    weights = log_assignment_weights(side.assignment_logits[among], side.n_clusters).exp()
    return weights.mean(1, dtype=torch.float64)


def view_embeddings(weights: Tensor, centers: Tensor, n_clusters: tuple[int, ...]) -> Tensor:
    """Embeddings of each view (Eq. 2 of the paper), z_{e,v} = sum_k w_{e,v,k} c_{v,k}.

    Args:
        weights: [S, R] assignment weights, cluster-major.
        centers: [S, d], same dtype.
        n_clusters: active clusters of each view.

    Returns:
        [R, V, d].
    """
    views = zip(weights.split(n_clusters), centers.split(n_clusters), strict=True)
    return torch.stack([view_weights.T @ view_centers for view_weights, view_centers in views], dim=1)


def combine_views(per_view: Tensor, combine: Combine) -> Tensor:
    """[R, V, d] → [R, V*d] (`concat`) or [R, d] (`sum`)."""
    return per_view.flatten(1) if combine == "concat" else per_view.sum(1)


def embed(side: SideTensors, rows: Tensor | None = None, *, combine: Combine) -> Tensor:
    """Embeddings of the given rows ([R] int64; None for all): [R, V*d] for `concat`, [R, d] for `sum`."""
    logits = side.assignment_logits if rows is None else side.assignment_logits.index_select(0, rows)
    weights = log_assignment_weights(logits, side.n_clusters).exp()
    return combine_views(view_embeddings(weights, side.centers, side.n_clusters), combine)


def spread(centers: Tensor, n_clusters: tuple[int, ...], margin: float) -> Tensor:
    """Squared hinge on the distances between the centers of a view.

    mean over views with at least two clusters of the mean over pairs k < l of max(0, margin - |c_k - c_l|)^2.

    Args:
        centers: [S, d] floating.
        n_clusters: active clusters of each view.
        margin: distance from which on two centers do not repel each other.

    Returns:
        Scalar []; 0 where every view has one cluster.
    """
    per_view = []
    for view_centers in centers.split(n_clusters):
        k = len(view_centers)
        if k >= 2:
            distance = torch.linalg.vector_norm(view_centers[:, None] - view_centers[None], dim=2)  # [K, K]
            hinge = torch.clamp_min(margin - distance, 0.0) ** 2
            per_view.append(hinge.triu(1).sum() / (k * (k - 1) // 2))
    return torch.stack(per_view).mean() if per_view else centers.new_zeros(())


def proximity(weights: Tensor, centers: Tensor, per_view: Tensor, n_clusters: tuple[int, ...]) -> Tensor:
    """Weighted squared distance of each embedding to the centers of its view, averaged over views.

    sum_k w_k |z_v - c_k|^2 = sum_k w_k |c_k|^2 - |z_v|^2, because z_v is the weighted mean of the centers.

    Args:
        weights: [S, R] assignment weights, cluster-major.
        centers: [S, d].
        per_view: [R, V, d] embeddings of each view.

    Returns:
        [R].
    """
    return (centers.square().sum(1) @ weights - per_view.square().sum((1, 2))) / len(n_clusters)


def normalized_entropy(log_weights: Tensor, n_clusters: tuple[int, ...]) -> Tensor:
    """Entropy of the assignment weights of each view divided by ln K_v (0 where K_v = 1).

    Args:
        log_weights: [S, R], as from `log_assignment_weights`: finite, so that w ln w is 0, not NaN, where w is 0.

    Returns:
        [V, R] in [0, 1].
    """
    terms = -log_weights.exp() * log_weights
    scales = [1 / math.log(k) if k > 1 else 0.0 for k in n_clusters]
    views = zip(terms.split(n_clusters), scales, strict=True)
    return torch.stack([view_terms.sum(0) * scale for view_terms, scale in views])


def batch_loss(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    """All loss terms of one batch of B ratings; see `mfdmc_fast.ops.functional.batch_loss` for the contract."""
    if len(ratings) == 0:
        return _empty_terms([t for side in (user, item) for t in (side.assignment_logits, side.centers, side.bias)])

    gathered = []
    spread_sum, proximity_sum, entropy_sum, l2_sum, bias_l2_sum = ratings.new_zeros(5).unbind()
    prediction = torch.full_like(ratings, global_mean)
    for side, idx in ((user, user_idx), (item, item_idx)):
        rows, inverse, counts = torch.unique(idx, return_inverse=True, return_counts=True)
        share = counts.to(ratings.dtype) / len(ratings)  # [R], sums to 1
        log_weights = log_assignment_weights(side.assignment_logits.index_select(0, rows), side.n_clusters)  # [S, R]
        side_weights = log_weights.exp()
        per_view = view_embeddings(side_weights, side.centers, side.n_clusters)  # [R, V, d]
        embeddings = combine_views(per_view, combine)  # [R, D]
        gathered.append(embeddings.index_select(0, inverse))  # [B, D]

        spread_sum = spread_sum + spread(side.centers, side.n_clusters, spread_margin)
        proximity_sum = proximity_sum + share @ proximity(side_weights, side.centers, per_view, side.n_clusters)
        entropy_sum = entropy_sum + normalized_entropy(log_weights, side.n_clusters).mean(0) @ share
        lengths = embeddings.square().sum(1)  # [R]
        l2_sum = l2_sum + share @ (lengths if side.l2_scale is None else lengths * side.l2_scale.index_select(0, rows))
        if side.bias is not None:
            bias = side.bias.index_select(0, rows)  # [R]
            prediction = prediction + bias.index_select(0, inverse)
            bias_l2_sum = bias_l2_sum + share @ bias.square()

    prediction = prediction + (gathered[0] * gathered[1]).sum(1)
    mse = (prediction - ratings).square().mean()
    total = (
        mse
        + weights.spread * spread_sum
        + weights.proximity * proximity_sum
        + weights.entropy * entropy_sum
        + weights.l2 * l2_sum
        + weights.bias_l2 * bias_l2_sum
    )
    return LossTerms(total, mse, spread_sum, proximity_sum, entropy_sum, l2_sum, bias_l2_sum)


def funkmf_loss(
    user: FactorTensors,
    item: FactorTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    weights: LossWeights,
) -> LossTerms:
    """Loss terms of FunkMF for one batch; see `mfdmc_fast.ops.functional.funkmf_loss` for the contract."""
    if len(ratings) == 0:
        return _empty_terms([t for side in (user, item) for t in side])
    p, q = user.factors.index_select(0, user_idx), item.factors.index_select(0, item_idx)  # [B, n_factors]
    prediction = (p * q).sum(1) + global_mean
    bias_l2 = ratings.new_zeros(())
    for side, idx in ((user, user_idx), (item, item_idx)):
        if side.bias is not None:
            bias = side.bias.index_select(0, idx)  # [B]
            prediction = prediction + bias
            bias_l2 = bias_l2 + bias.square().mean()
    mse = (prediction - ratings).square().mean()
    l2 = ratings.new_zeros(())
    for side, idx, factors in ((user, user_idx, p), (item, item_idx, q)):
        lengths = factors.square().sum(1)  # [B]
        l2 = l2 + (lengths if side.l2_scale is None else lengths * side.l2_scale.index_select(0, idx)).mean()
    none = torch.zeros_like(mse)
    return LossTerms(mse + weights.l2 * l2 + weights.bias_l2 * bias_l2, mse, none, none, none, l2, bias_l2)


def score_pairs(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    *,
    combine: Combine,
) -> Tensor:
    """Predicted ratings [B] of index pairs; see `mfdmc_fast.ops.functional.score_pairs` for the contract."""
    gathered = []
    prediction = user.centers.new_full(user_idx.shape, global_mean)
    for side, idx in ((user, user_idx), (item, item_idx)):
        rows, inverse = torch.unique(idx, return_inverse=True)
        gathered.append(embed(side, rows, combine=combine).index_select(0, inverse))
        if side.bias is not None:
            prediction = prediction + side.bias.index_select(0, idx)
    return prediction + (gathered[0] * gathered[1]).sum(1)


def fold_in_loss(
    logits: Tensor,
    centers: Tensor,
    n_clusters: tuple[int, ...],
    partner_embeddings: Tensor,
    residuals: Tensor,
    own: RowRatings,
    prior: RowPrior,
    *,
    biases: bool,
    combine: Combine,
    weights: LossWeights,
) -> tuple[Tensor, Tensor | None]:
    """What `fold_in` minimizes for each row, and the best bias for these logits.

    Args:
        logits: [R, S] assignment logits. centers: [S, d].
        partner_embeddings: [M, D].
        residuals: [N] ratings without global mean and the partners' biases.
        own: whose ratings they are; its own `ratings` are not used.
        prior, biases, combine, weights: as in `fold_in`.

    Returns:
        ([R], [R] or None); the first is differentiable in `logits`.
    """
    counts = own.offsets.diff()  # [R]
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # [N]
    log_weights = log_assignment_weights(logits, n_clusters)  # [S, R]
    row_weights = log_weights.exp()
    per_view = view_embeddings(row_weights, centers, n_clusters)  # [R, V, d]
    embeddings = combine_views(per_view, combine)  # [R, D]
    dim = embeddings.shape[1]
    errors = residuals - (embeddings.index_select(0, row) * partner_embeddings.index_select(0, own.partners)).sum(1)
    bias = None
    apart = embeddings - prior.means[:, :dim]  # [R, D], from the prior mean
    if biases:
        # where the derivative of squared errors and prior by the bias is 0
        known = torch.zeros_like(logits[:, 0]).index_add(0, row, errors)
        pull = prior.precision[dim, dim] * prior.means[:, dim] - apart @ prior.precision[:dim, dim]
        bias = (known + pull) / (counts + prior.precision[dim, dim])
        errors = errors - bias.index_select(0, row)
        apart = torch.cat([apart, (bias - prior.means[:, dim])[:, None]], dim=1)
    squares = torch.zeros_like(logits[:, 0]).index_add(0, row, errors.square())
    squares = squares + ((apart @ prior.precision) * apart).sum(1)
    loss = squares / counts.clamp_min(1)
    loss = loss + weights.proximity * proximity(row_weights, centers, per_view, n_clusters)
    return loss + weights.entropy * normalized_entropy(log_weights, n_clusters).mean(0), bias


def fold_in(
    side: SideTensors,
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    global_mean: float,
    own: RowRatings,
    prior: RowPrior,
    *,
    combine: Combine,
    weights: LossWeights,
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
    block_size: int = 256,
) -> tuple[Tensor, Tensor | None]:
    """Rows solved with all else fixed; see `mfdmc_fast.ops.functional.fold_in` for the contract."""
    known = own.ratings - global_mean
    if partner_bias is not None:
        known = known - partner_bias.index_select(0, own.partners)
    logits, biases = [side.assignment_logits[:0]], [side.centers[:0, 0]]
    for start in range(0, len(side.assignment_logits), block_size):  # rows do not depend on each other
        rows = slice(start, start + block_size)
        offsets = own.offsets[start : start + block_size + 1]
        ratings = slice(int(offsets[0]), int(offsets[-1]))
        block = RowRatings(offsets - offsets[0], own.partners[ratings], own.ratings[ratings])

        def loss_of(
            solved: Tensor, rows: slice = rows, ratings: slice = ratings, block: RowRatings = block
        ) -> tuple[Tensor, Tensor | None]:
            return fold_in_loss(
                solved,
                side.centers,
                side.n_clusters,
                partner_embeddings,
                known[ratings],
                block,
                RowPrior(prior.means[rows], prior.precision),
                biases=partner_bias is not None,
                combine=combine,
                weights=weights,
            )

        solved = side.assignment_logits[rows].detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([solved], betas=betas, eps=epsilon)
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            (solved.grad,) = torch.autograd.grad(loss_of(solved)[0].sum(), solved)
            optimizer.step()
        logits.append(solved.detach())
        bias = loss_of(solved)[1]
        if bias is not None:
            biases.append(bias.detach())
    return torch.cat(logits), None if partner_bias is None else torch.cat(biases)


def fold_in_factors(
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    global_mean: float,
    own: RowRatings,
    prior: RowPrior,
    *,
    block_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """Ridge regressions around the prior; see `mfdmc_fast.ops.functional.fold_in_factors` for the contract."""
    known = own.ratings - global_mean
    columns = partner_embeddings
    if partner_bias is not None:
        known = known - partner_bias.index_select(0, own.partners)
        columns = torch.cat([columns, torch.ones_like(partner_bias)[:, None]], dim=1)  # [M, U]
    bounds = own.offsets.tolist()
    solved = [prior.means[:0]]
    for start in range(0, len(prior.means), block_size):  # of the systems, which take U² numbers each
        matrices, right = [], []
        for row in range(start, min(start + block_size, len(prior.means))):
            ratings = slice(bounds[row], bounds[row + 1])
            rows = columns.index_select(0, own.partners[ratings])  # [c, U]
            matrices.append(rows.T @ rows + prior.precision)
            right.append(rows.T @ known[ratings] + prior.precision @ prior.means[row])
        solved.append(torch.linalg.solve(torch.stack(matrices), torch.stack(right)))
    rows = torch.cat(solved)
    if partner_bias is None:
        return rows, None
    return rows[:, :-1].contiguous(), rows[:, -1].contiguous()


def posterior_scores(
    user_draws: Tensor,
    item_draws: Tensor,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    *,
    scale: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Means and deviations over draws; see `mfdmc_fast.ops.functional.posterior_scores` for the contract."""
    mean = user_draws.new_zeros(len(user_idx), dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for users, items in zip(user_draws, item_draws, strict=True):
        p, q = users[user_idx], items[item_idx]  # [B, rank + 1]
        ratings = (p[:, :-1] * q[:, :-1]).sum(1) + p[:, -1] + q[:, -1] + global_mean
        ratings = ratings.clamp(*scale).double()
        mean += ratings / len(user_draws)
        squares += ratings.square() / len(user_draws)
    deviation = (squares - mean.square()).clamp_min(0).sqrt()
    return mean.to(user_draws.dtype), deviation.to(user_draws.dtype)


def top_items(
    user_embeddings: Tensor,
    item_embeddings: Tensor,
    item_bias: Tensor | None,
    n: int,
    *,
    exclude_offsets: Tensor | None = None,
    exclude_items: Tensor | None = None,
    block_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The n best items of each user, best first; see `mfdmc_fast.ops.functional.top_items` for the contract."""
    all_items, all_scores = [], []
    for start in range(0, len(user_embeddings), block_size):
        scores = user_embeddings[start : start + block_size] @ item_embeddings.T  # [b, M]
        if item_bias is not None:
            scores = scores + item_bias
        if exclude_offsets is not None and exclude_items is not None:
            offsets = exclude_offsets[start : start + len(scores) + 1]
            row = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), offsets.diff())
            scores[row, exclude_items[offsets[0] : offsets[-1]]] = -math.inf
        # a stable sort, so that equal scores come in item order on every backend
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :n], order[:, :n]
        all_items.append(torch.where(scores == -math.inf, -1, order))
        all_scores.append(scores)
    if not all_items:
        width = min(n, len(item_embeddings))
        empty = user_embeddings.new_empty(0, width)
        return empty.long(), empty
    return torch.cat(all_items), torch.cat(all_scores)


def compact_columns(table: Tensor, keep: Tensor) -> Tensor:
    """The kept columns, in the table's own memory; see `mfdmc_fast.ops.functional.compact_columns` for the contract."""
    n, flat = len(table), table.view(-1)
    compacted = flat[: n * len(keep)].view(n, len(keep))
    for start in range(0, n, _ROWS_PER_BLOCK):
        # a block's target ends before the next block's source begins, so blocks in ascending order are safe
        block = table[start : start + _ROWS_PER_BLOCK].index_select(1, keep)
        compacted[start : start + len(block)].copy_(block)
    return compacted


def _empty_terms(parameters: list[Tensor | None]) -> LossTerms:
    """Zeros that are still connected to the parameters, so that backward of an empty batch gives zero gradients."""
    zero = torch.stack([p[:0].sum() for p in parameters if p is not None]).sum()
    return LossTerms(zero, zero, zero, zero, zero, zero, zero)
