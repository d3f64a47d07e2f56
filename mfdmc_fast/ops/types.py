"""Argument and result types that all ops and backends share."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Combine = Literal["concat", "sum"]


class SideTensors(NamedTuple):
    """The parameters of one side (users or items) as plain tensors; S = sum(n_clusters), V = len(n_clusters).

    Attributes:
        assignment_logits: [n, S] floating; the active clusters of the views side by side, ragged.
        centers: [S, d], same dtype; row s is the center of the cluster in column s.
        n_clusters: active clusters K_v of each view, each at least 1.
        bias: [n], same dtype, or None for a model without biases (then on both sides).
        l2_scale: [n], same dtype: the L2 weight of each row's embedding is `l2` times this; None: 1. Not trained.
    """

    assignment_logits: Tensor
    centers: Tensor
    n_clusters: tuple[int, ...]
    bias: Tensor | None = None
    l2_scale: Tensor | None = None


class FactorTensors(NamedTuple):
    """The parameters of one side of FunkMF.

    Attributes:
        factors: [n, n_factors] floating.
        bias: [n], same dtype, or None (then on both sides).
        l2_scale: as in `SideTensors`.
    """

    factors: Tensor
    bias: Tensor | None = None
    l2_scale: Tensor | None = None


class LossWeights(NamedTuple):
    """Weights of the loss terms; `mse` always has weight 1."""

    spread: float = 0.0
    proximity: float = 0.0
    entropy: float = 0.0
    l2: float = 0.0
    bias_l2: float = 0.0


class LossTerms(NamedTuple):
    """Unweighted loss terms of one batch, scalars [], and their weighted sum `total`, the one to differentiate."""

    total: Tensor
    mse: Tensor
    spread: Tensor
    proximity: Tensor
    entropy: Tensor
    l2: Tensor
    bias_l2: Tensor


class RowRatings(NamedTuple):
    """The ratings of R rows of one side, row by row; the other side's rows are called partners.

    Attributes:
        offsets: [R + 1] int64; row r has the ratings offsets[r] : offsets[r + 1].
        partners: [N] int32 rows of the other side.
        ratings: [N] floating, rating points.
    """

    offsets: Tensor
    partners: Tensor
    ratings: Tensor


class RowPrior(NamedTuple):
    """A normal prior of what is solved for R rows: embedding, and then the bias where there are biases; U numbers.

    Attributes:
        means: [R, U] floating.
        precision: [U, U], same dtype, symmetric and positive definite: the inverse covariance times the noise variance
            of a rating, so that it adds to squared errors.
    """

    means: Tensor
    precision: Tensor


class FeatureBags(NamedTuple):
    """What some entities of a side have in common, feature by feature.

    Attributes:
        offsets: [F + 1] int64; feature f belongs to entities[offsets[f] : offsets[f + 1]].
        entities: int32 rows, ascending for each feature.
    """

    offsets: npt.NDArray[np.int64]
    entities: npt.NDArray[np.int32]


class GibbsSampler(Protocol):
    """Draws of Bayesian matrix factorization, one sweep after the other; `functional.gibbs_sampler` makes one."""

    @property
    def noise_precision(self) -> float:
        """1 / variance of a rating around its prediction where both weights are 1, as drawn last."""

    def sweep(self) -> None:
        """Draw everything once."""

    def rows(self, side: int) -> npt.NDArray[np.float32]:
        """[n, rank + 1] factors and bias of the users (0) or items (1), as drawn last."""

    def noise_weights(self, side: int) -> npt.NDArray[np.float32]:
        """[n] weights of the noise precision of the users' (0) or items' (1) ratings, as drawn last."""

    def watch(
        self,
        users: npt.NDArray[np.int32],
        items: npt.NDArray[np.int32],
        scale: tuple[float, float],
        sums: npt.NDArray[np.float32],
    ) -> None:
        """Let `add_predictions` add the predictions of P pairs, clipped to the scale, to sums [P]."""

    def add_predictions(self) -> None:
        """Add the predictions by the last draw to the sums of all watched pairs."""
