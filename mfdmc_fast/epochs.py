"""How one epoch of training is run: step by step through torch, or in the native engine without leaving C++.

Both see the same batches in the same order and take the same steps, so they follow the same trajectory within
rounding (tested), and both keep their optimizer state where pruning can compact it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from mfdmc_fast.data.batches import BatchIterator
from mfdmc_fast.errors import TrainingDiverged
from mfdmc_fast.model import SIDES, RatingModel, SideName
from mfdmc_fast.ops import native
from mfdmc_fast.ops.types import LossTerms
from mfdmc_fast.optim import (
    ADAGRAD_EPSILON,
    ADAM_BETAS,
    ADAM_EPSILON,
    OptimizerState,
    likely_cause,
    make_optimizer,
    rate_factor,
)

_PARAMETERS_WORTH_THREADS = 4_000_000
# a call into the native engine should return this often, for progress and Ctrl-C
_SECONDS_PER_CALL = 0.1


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


def make_epochs(model: RatingModel, batches: BatchIterator, backend: str) -> Epochs:
    """The native engine for the `cpu` backend where it takes the data, torch for everything else."""
    if backend == "cpu" and batches.n_batches <= native.MAX_BATCHES:
        return NativeEpochs(model, batches)
    return TorchEpochs(model, batches)


class TorchEpochs:
    """Each step by autograd and a torch optimizer, on any backend."""

    def __init__(self, model: RatingModel, batches: BatchIterator) -> None:
        self._model, self._batches = model, batches
        self._torch_optimizer = make_optimizer(model)
        self.optimizer: OptimizerState = self._torch_optimizer
        self._total_steps = model.config.epochs * batches.n_batches
        self._base_rates = [group["lr"] for group in self._torch_optimizer.param_groups]

    def run(self, epoch: int, listeners: Sequence[BatchListener]) -> dict[str, float]:
        sums = np.zeros(len(LossTerms._fields))
        first_step = (epoch - 1) * self._batches.n_batches
        with threads_for(self._model):
            for number, batch in enumerate(self._batches.epoch(epoch), start=1):
                factor = rate_factor(
                    self._model.config.learning_rate_schedule, first_step + number - 1, self._total_steps
                )
                for group, rate in zip(self._torch_optimizer.param_groups, self._base_rates, strict=True):
                    group["lr"] = rate * factor
                self._torch_optimizer.zero_grad(set_to_none=True)
                terms = self._model.batch_loss(*batch, epoch=epoch)
                values = torch.stack([term.detach() for term in terms]).double().cpu().numpy()
                if not math.isfinite(values[0]):
                    raise _diverged(values[0], epoch, number, self._batches, self.optimizer)
                terms.total.backward()
                self._torch_optimizer.step()
                sums += values * len(batch.ratings)
                for listener in listeners:
                    listener.on_batch_end(epoch, number)
        return _mean_terms(sums, len(self._batches.dataset))


class NativeEpochs:
    """All steps in the C++ engine: batches dealt, loss, gradients and optimizer in one call.

    Rows that a batch does not touch are left alone; Adam's, until they are needed or the epoch ends.
    """

    def __init__(self, model: RatingModel, batches: BatchIterator) -> None:
        self._model, self._batches = model, batches
        self.optimizer: OptimizerState = _NativeState(model)
        self._trainer = native.Trainer(
            user_offsets=batches.dataset.user_offsets,
            items=batches.dataset.item_idx,
            ratings=batches.dataset.ratings,
            n_items=model.n_entities["item"],
            n_batches=batches.n_batches,
            seed=batches.seed,
        )
        config = model.config
        total = config.epochs * batches.n_batches
        factors = np.array([rate_factor(config.learning_rate_schedule, step, total) for step in range(total)])
        rates = {group["name"]: group["lr"] * factors for group in self.optimizer.param_groups}
        if config.optimizer == "adagrad":
            self._schedule = native.adagrad_schedule(rates, epsilon=ADAGRAD_EPSILON)
        else:
            self._schedule = native.adam_schedule(rates, betas=ADAM_BETAS, epsilon=ADAM_EPSILON)

    def run(self, epoch: int, listeners: Sequence[BatchListener]) -> dict[str, float]:
        n_batches = self._batches.n_batches
        first_step = (epoch - 1) * n_batches
        sides = {side: self._state_of(side) for side in SIDES}
        options = self._model.native_options(epoch)
        self._trainer.start_epoch(epoch)
        batch, per_call = 0, 1
        while batch < n_batches:
            start = time.perf_counter()
            upto = min(n_batches, batch + per_call)
            sums, done, failed = self._trainer.run(
                batch, upto, sides["user"], sides["item"], options, self._schedule, first_step + batch
            )
            if failed:
                raise _diverged(
                    sums[0] if math.isnan(sums[0]) else math.inf, epoch, done, self._batches, self.optimizer
                )
            for number in range(batch + 1, upto + 1):
                for listener in listeners:
                    listener.on_batch_end(epoch, number)
            seconds = max(time.perf_counter() - start, 1e-6)
            per_call = max(1, int(_SECONDS_PER_CALL / seconds * (upto - batch)))
            batch = upto
        if self._model.config.optimizer == "adam":
            for state in sides.values():
                native.catch_up(state, self._schedule, first_step + n_batches)
        return _mean_terms(sums, len(self._batches.dataset))

    def _state_of(self, side: SideName) -> Any:
        """The arrays of a side as they are now: pruning has changed their shapes since the last epoch."""
        parameters = self._model.native_parameters(side)
        state = self.optimizer.state
        return native.side_state(parameters, {name: state[p] for name, p in parameters.tensors().items()})


class _NativeState:
    """Optimizer state of the native engine, laid out as the torch optimizers', so that pruning can treat both alike."""

    def __init__(self, model: RatingModel) -> None:
        self.param_groups: list[dict[str, Any]] = model.parameter_groups()
        self.state: dict[Any, dict[str, Any]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if model.config.optimizer == "adagrad":
                    self.state[parameter] = {"row_sum": torch.zeros(len(parameter))}
                else:
                    self.state[parameter] = {
                        "exp_avg": torch.zeros_like(parameter.data),
                        "exp_avg_sq": torch.zeros_like(parameter.data),
                    }
        if model.config.optimizer == "adagrad":
            return
        for side in SIDES:
            # the first step that each row has not made yet
            table = model.native_parameters(side).table
            self.state[table]["next_step"] = torch.zeros(len(table), dtype=torch.int32)


@contextmanager
def threads_for(model: RatingModel) -> Iterator[None]:
    """One torch thread for models whose steps are too short to share out; restores the setting of the process.

    On tables of MovieLens size, each of the reference's many short operations would wait for all threads, and far
    longer when another process keeps a core busy.
    """
    threads = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < _PARAMETERS_WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mean_terms(sums: np.ndarray[Any, Any], n_ratings: int) -> dict[str, float]:
    return dict(zip(LossTerms._fields, (sums / n_ratings).tolist(), strict=True))


def _diverged(
    loss: float, epoch: int, batch: int, batches: BatchIterator, optimizer: OptimizerState
) -> TrainingDiverged:
    return TrainingDiverged(
        f"the loss became {loss} in epoch {epoch}, batch {batch} of {batches.n_batches}: "
        + likely_cause(batches.dataset.ratings, optimizer)
    )
