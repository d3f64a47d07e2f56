"""Fold-in: rows of a trained model solved from ratings, with the centers and the other side as they are.

A row's prior is what the trained rows of its side are like: a normal distribution with their mean and their covariance,
widened by what their ratings leave open. It stands in the place of the L2 terms of training, which know nothing of how
embeddings are spread; proximity and entropy keep the weights of the last epoch, so that memberships are as sharp as in
training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.epochs import threads_for
from mfdmc_fast.model import MFDMCModel, RatingModel, SideName
from mfdmc_fast.ops import functional
from mfdmc_fast.ops.types import LossWeights, RowPrior, RowRatings, SideTensors
from mfdmc_fast.optim import ADAM_BETAS, rate_factor

# steps, and the learning rate of the first, which falls as in training: with three times the rate, rows move that
# should stay where they are
STEPS = 120
LEARNING_RATE = 0.1
# Adam's epsilon in units of the noise variance: with training's, rounding alone would move a row
EPSILON = 1e-3
# what every direction varies by at least, as a share of what the bias or number that varies most does: float32 must
# tell the directions apart
LEAST_VARIANCE = 1e-3


class Population(NamedTuple):
    """What the trained rows of a side are like; U numbers a row: its embedding, then its bias where there are biases.

    Attributes:
        mean: [U].
        precision: [U, U], inverse covariance times the noise variance of a rating; see `RowPrior`.
        start: [S] assignment logits of the mean assignment weights, or the mean factors.
        noise: that variance.
    """

    mean: Tensor
    precision: Tensor
    start: Tensor
    noise: float


def population(model: RatingModel, side: SideName, counts: Tensor, partner_counts: Tensor, noise: float) -> Population:
    """The population of a side.

    Trained rows are estimates and lie closer together than what they estimate. To their covariance is added the mean
    covariance of what is left open about a row with c ratings, (c / noise · mean of y y' + inverse covariance)^-1 with
    the vectors y of partners by their ratings: a step of expectation maximization (Dempster, Laird and Rubin, 1977).

    Args:
        model: trained.
        side: `user` or `item`.
        counts: [n] ratings of the rows that were trained; rows beyond them were folded in and are left out.
        partner_counts: [M] the same of the other side.
        noise: variance of a rating around its prediction, above 0.
    """
    with threads_for(model):
        kind = embeddings_and_biases(model, side)[: len(counts)]  # [n, U]
        covariance = _covariance_of_rows(kind.double())
        partners = embeddings_and_biases(model, other_side(side))[: len(partner_counts)].double()  # [M, U]
        if model.bias(side) is not None:
            partners[:, -1] = 1
        weights = partner_counts.to(partners) / max(1, int(partner_counts.sum()))
        covariance = covariance + _mean_open_covariance(
            covariance, (partners * weights[:, None]).T @ partners, counts.to(partners) / noise
        )
        precision = noise * torch.linalg.inv(covariance)
        if isinstance(model, MFDMCModel):
            views = model.prunable_sides()[side].assignment_weights()
            start = torch.cat([w[: len(counts)].mean(0) for w in views]).clamp_min(1e-6).log()
        else:
            start = kind[:, : model.native_parameters(side).table.shape[1]].mean(0)
        symmetric = ((precision + precision.T) / 2).to(kind)
        return Population(kind.double().mean(0).to(kind), symmetric, start, noise)


def _covariance_of_rows(rows: Tensor) -> Tensor:
    """[U, U] covariance of [n, U] rows, made so that it can be inverted."""
    variances = rows.var(0)
    # as if U more rows had shown numbers that do not depend on each other: few rows say little of how they do
    share = rows.shape[1] / (len(rows) + rows.shape[1])
    covariance = (1 - share) * torch.cov(rows.T) + share * torch.diag(variances)
    # where all rows are alike, as in a view with one cluster, nothing should move them
    least = LEAST_VARIANCE * max(1e-6, float(variances.max()))
    return covariance + least * torch.eye(len(covariance), dtype=rows.dtype, device=rows.device)


def _mean_open_covariance(covariance: Tensor, information: Tensor, amounts: Tensor) -> Tensor:
    """Mean over n rows of (amount · information + covariance^-1)^-1, by one basis in which both are diagonal.

    Args:
        covariance: [U, U], positive definite. information: [U, U]. amounts: [n].
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(root.T @ information @ root)
    left = (1 / (1 + amounts[:, None] * values.clamp_min(0))).mean(0)
    basis: Tensor = root @ vectors
    return basis @ torch.diag(left) @ basis.T


def other_side(side: SideName) -> SideName:
    """`item` for `user` and the other way round."""
    return "item" if side == "user" else "user"


def embeddings_and_biases(model: RatingModel, side: SideName) -> Tensor:
    """[n, U] rows of a side."""
    bias = model.bias(side)
    embeddings = model.embeddings(side)
    return embeddings if bias is None else torch.cat([embeddings, bias[:, None]], dim=1)


def append_rows(model: RatingModel, side: SideName, n: int, like: Population) -> None:
    """Give a side n more rows, each the mean of its population."""
    parameters = model.native_parameters(side)
    parameters.table.data = torch.cat([parameters.table.data, like.start.expand(n, -1)])
    if parameters.bias is not None:
        parameters.bias.data = torch.cat([parameters.bias.data, like.mean[-1].expand(n)])
    model.n_entities[side] += n
    model.drop_l2_scales()


def solve_rows(
    model: RatingModel,
    side: SideName,
    rows: np.ndarray,
    own: RowRatings,
    like: Population,
    *,
    means: Tensor | None = None,
    weights: LossWeights,
) -> None:
    """Solve rows of a side in place, from where they are.

    Args:
        model: trained.
        side: of the rows.
        rows: [R] distinct row numbers, R at least 1.
        own: their ratings.
        like: the side's population.
        means: [R, U] means of the rows' priors; None: the population's.
        weights: of proximity and entropy; models without clusters have neither.
    """
    parameters = model.native_parameters(side)
    at = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(model.device)
    prior = RowPrior(like.mean.expand(len(rows), -1) if means is None else means, like.precision)
    with threads_for(model):
        embeddings = model.embeddings(other_side(side))
    fixed = (embeddings, model.bias(other_side(side)), model.global_mean, own, prior)
    if parameters.centers is None:
        # the reference serves every backend here: one system of equations a row
        with threads_for(model):
            table, bias = functional.fold_in_factors(*fixed, backend="reference")
    else:
        assert isinstance(model, MFDMCModel)
        table, bias = functional.fold_in(
            SideTensors(parameters.table.data[at], parameters.centers, parameters.n_clusters),
            *fixed,
            combine=model.config.combine,
            weights=weights,
            rates=[LEARNING_RATE * rate_factor("cosine", step, STEPS) for step in range(STEPS)],
            betas=ADAM_BETAS,
            epsilon=EPSILON * like.noise,
            backend=model.config.backend,
        )
    parameters.table.data[at] = table
    if bias is not None and parameters.bias is not None:
        parameters.bias.data[at] = bias
