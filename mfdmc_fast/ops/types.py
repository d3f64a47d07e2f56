"""Argument and result types that all ops and backends share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Combine = Literal["concat", "sum"]


class SideTensors(NamedTuple):
    """The parameters of one side (users or items) as plain tensors; S = sum(n_clusters), V = len(n_clusters).

    Attributes:
        assignment_logits: [n, S] floating; the active clusters of the views side by side, ragged.
        centers: [S, d], same dtype; row s is the center of the cluster in column s.
        n_clusters: active clusters K_v of each view, each at least 1.
        bias: [n], same dtype, or None for a model without biases (then on both sides).
    """

    assignment_logits: Tensor
    centers: Tensor
    n_clusters: tuple[int, ...]
    bias: Tensor | None = None


class FactorTensors(NamedTuple):
    """The parameters of one side of FunkMF.

    Attributes:
        factors: [n, n_factors] floating.
        bias: [n], same dtype, or None (then on both sides).
    """

    factors: Tensor
    bias: Tensor | None = None


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
