"""How one epoch of training is run: step by step through torch, or in the native engine without leaving C++, or on a
device without waiting for it (`device_epochs`).

All see the same batches in the same order and take the same steps, so they follow the same trajectory within rounding
(tested), and all keep their optimizer state where pruning can compact it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mfdmc_fast.data.batches import BatchIterator
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import StreamedRatings
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import SIDES, MFDMCModel, RatingModel, SideName
from mfdmc_fast.ops import native
from mfdmc_fast.ops.types import LossTerms
from mfdmc_fast.optim import (
    ADAGRAD_EPSILON,
    ADAM_BETAS,
    ADAM_EPSILON,
    OptimizerState,
    make_optimizer,
    rate_factor,
)
from mfdmc_fast.steps import BatchListener, Epochs, FreshState, diverged, mean_terms, rates_of_steps

_PARAMETERS_WORTH_THREADS = 4_000_000
# a call into the native engine should return this often, for progress and Ctrl-C
_SECONDS_PER_CALL = 0.1


def make_epochs(model: RatingModel, batches: BatchIterator, backend: str) -> Epochs:
    """The native engine for `cpu` where it takes the data, `DeviceEpochs` for `triton`, torch for everything else.

    Raises:
        ConfigError: streamed ratings, which only the native engine takes, or tables of 16 bits, which only
            `DeviceEpochs` does.
    """
    if backend == "cpu" and batches.n_batches <= native.MAX_BATCHES:
        return NativeEpochs(model, batches)
    if isinstance(batches.dataset, StreamedRatings):
        raise ConfigError(
            f"ratings stream from a store with the backend cpu and at most {native.MAX_BATCHES:,} batches an epoch, not"
            f" with {backend} and {batches.n_batches:,}; choose that backend, other batches, or more memory"
        )
    if backend == "triton" and isinstance(model, MFDMCModel):
        from mfdmc_fast.device_epochs import DeviceEpochs

        return DeviceEpochs(model, batches)
    if any(parameter.dtype.itemsize < 4 for parameter in model.parameters()):
        raise ConfigError(
            f"tables of 16 bits (dtype) are trained by the backend triton, not by {backend}: choose that backend and a"
            " GPU as the device, or float32"
        )
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
                    raise diverged(values[0], epoch, number, self._batches, self.optimizer)
                terms.total.backward()
                self._torch_optimizer.step()
                sums += values * len(batch.ratings)
                for listener in listeners:
                    listener.on_batch_end(epoch, number)
        return mean_terms(sums, len(self._batches.dataset))


class NativeEpochs:
    """All steps in the C++ engine: batches dealt, loss, gradients and optimizer in one call.

    Rows that a batch does not touch are left alone; Adam's, until they are needed or the epoch ends.
    """

    def __init__(self, model: RatingModel, batches: BatchIterator) -> None:
        self._model, self._batches = model, batches
        self.optimizer: OptimizerState = _NativeState(model)
        self._trainer = native.Trainer(
            user_offsets=batches.dataset.user_offsets,
            **_columns_of(batches.dataset),
            n_items=model.n_entities["item"],
            n_batches=batches.n_batches,
            seed=batches.seed,
        )
        rates = rates_of_steps(model, self.optimizer, batches.n_batches)
        if model.config.optimizer == "adagrad":
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
                raise diverged(sums[0] if math.isnan(sums[0]) else math.inf, epoch, done, self._batches, self.optimizer)
            for number in range(batch + 1, upto + 1):
                for listener in listeners:
                    listener.on_batch_end(epoch, number)
            seconds = max(time.perf_counter() - start, 1e-6)
            per_call = max(1, int(_SECONDS_PER_CALL / seconds * (upto - batch)))
            batch = upto
        if self._model.config.optimizer == "adam":
            for state in sides.values():
                native.catch_up(state, self._schedule, first_step + n_batches)
        return mean_terms(sums, len(self._batches.dataset))

    def _state_of(self, side: SideName) -> Any:
        """The arrays of a side as they are now: pruning has changed their shapes since the last epoch."""
        parameters = self._model.native_parameters(side)
        state = self.optimizer.state
        return native.side_state(parameters, {name: state[p] for name, p in parameters.tensors().items()})


class _NativeState(FreshState):
    """With what the native engine keeps besides: the first step that each row has not made yet."""

    def __init__(self, model: RatingModel) -> None:
        super().__init__(model)
        if model.config.optimizer == "adam":
            for side in SIDES:
                table = model.native_parameters(side).table
                self.state[table]["next_step"] = torch.zeros(len(table), dtype=torch.int32)


def _columns_of(ratings: RatingsDataset | StreamedRatings) -> dict[str, Any]:
    """Items and ratings as the native engine takes them: arrays, or files and how it goes through them."""
    if isinstance(ratings, RatingsDataset):
        return {"items": ratings.item_idx, "ratings": ratings.ratings}
    store = ratings.store
    return {
        "items": str(store.item_path),
        "ratings": str(store.rating_path),
        "rating_values": store.rating_values,
        "dealt_at_once": ratings.dealt_at_once,
    }


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
