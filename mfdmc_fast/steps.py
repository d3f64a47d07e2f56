"""What all ways of running an epoch share: how they are called, the rates of their steps, and their optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.data.batches import BatchIterator
from mfdmc_fast.errors import TrainingDiverged
from mfdmc_fast.model import RatingModel
from mfdmc_fast.ops.types import LossTerms
from mfdmc_fast.optim import OptimizerState, likely_cause, rate_factor


class BatchListener(Protocol):
    """Who wants to hear of every batch."""

    def on_batch_end(self, epoch: int, batch: int) -> None:
        """After a step; the first batch of an epoch is 1."""


class Epochs(Protocol):
    """One way to run epochs; holds the optimizer state of the run."""

    optimizer: OptimizerState

    def run(self, epoch: int, listeners: Sequence[BatchListener]) -> dict[str, float]:
        """One pass over the ratings, epoch by epoch from 1; returns the mean of each loss term over the ratings.

        Raises:
            TrainingDiverged: the loss of a batch is NaN or infinite.
        """


class FreshState:
    """Optimizer state before the first step, laid out as the torch optimizers', so that pruning can treat both alike.

    Attributes:
        param_groups: the model's.
        state: parameter → `exp_avg` and `exp_avg_sq` of its shape, or `row_sum`, one number a row, on its device, in
            float32 for 16-bit parameters.
    """

    def __init__(self, model: RatingModel) -> None:
        self.param_groups: list[dict[str, Any]] = model.parameter_groups()
        self.state: dict[Any, dict[str, Any]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                if model.config.optimizer == "adagrad":
                    self.state[parameter] = {"row_sum": parameter.data.new_zeros(len(parameter), dtype=dtype)}
                else:
                    self.state[parameter] = {
                        "exp_avg": torch.zeros_like(parameter.data, dtype=dtype),
                        "exp_avg_sq": torch.zeros_like(parameter.data, dtype=dtype),
                    }


def rates_of_steps(model: RatingModel, optimizer: OptimizerState, n_batches: int) -> dict[str, npt.NDArray[np.float64]]:
    """Learning rates [steps of the run] of each parameter group, by its name."""
    total = model.config.epochs * n_batches
    factors = np.array([rate_factor(model.config.learning_rate_schedule, step, total) for step in range(total)])
    return {group["name"]: group["lr"] * factors for group in optimizer.param_groups}


def mean_terms(sums: npt.NDArray[np.float64], n_ratings: int) -> dict[str, float]:
    """Means over the ratings of the loss terms, from their sums [7]."""
    return dict(zip(LossTerms._fields, (sums / n_ratings).tolist(), strict=True))


def diverged(
    loss: float, epoch: int, batch: int, batches: BatchIterator, optimizer: OptimizerState
) -> TrainingDiverged:
    """What to raise where the loss of a batch is NaN or infinite."""
    return TrainingDiverged(
        f"the loss became {loss} in epoch {epoch}, batch {batch} of {batches.n_batches}: "
        + likely_cause(batches.dataset.scale, optimizer)
    )
