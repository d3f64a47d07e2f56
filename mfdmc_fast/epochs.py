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
import numpy.typing as npt
import torch

from mfdmc_fast.data.batches import Batch, BatchIterator
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import DEALT_AT_ONCE, StreamedRatings
from mfdmc_fast.distributed import Processes, Shard
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
from mfdmc_fast.shared_memory import open_rings
from mfdmc_fast.steps import BatchListener, Epochs, FreshState, diverged, mean_terms, rates_of_steps

_PARAMETERS_WORTH_THREADS = 4_000_000
# a call into the native engine should return this often, for progress and Ctrl-C
_SECONDS_PER_CALL = 0.1


def make_epochs(model: RatingModel, batches: BatchIterator, backend: str, shard: Shard | None = None) -> Epochs:
    """The native engine for `cpu` where it takes the data, `DeviceEpochs` for `triton` in a process that is alone,
    torch for everything else.

    Args:
        model: with the rows of the own users, and all those of items.
        batches: of all ratings.
        backend: of the kernels.
        shard: what this process has of them; None: everything.

    Raises:
        ConfigError: streamed ratings, which only the native engine takes, or tables of 16 bits, which only
            `DeviceEpochs` does.
    """
    if backend == "cpu" and batches.n_batches <= native.MAX_BATCHES:
        return NativeEpochs(model, batches, shard)
    if isinstance(batches.dataset, StreamedRatings):
        raise ConfigError(
            f"ratings stream from a store with the backend cpu and at most {native.MAX_BATCHES:,} batches an epoch, not"
            f" with {backend} and {batches.n_batches:,}; choose that backend, other batches, or more memory"
        )
    if backend == "triton" and isinstance(model, MFDMCModel) and (shard is None or shard.processes.size == 1):
        from mfdmc_fast.device_epochs import DeviceEpochs

        return DeviceEpochs(model, batches)
    if any(parameter.dtype.itemsize < 4 for parameter in model.parameters()):
        raise ConfigError(
            f"tables of 16 bits (dtype) are trained by the backend triton in one process, not by {backend}: choose that"
            " backend and a GPU as the device, or float32"
        )
    return TorchEpochs(model, batches, shard)


class TorchEpochs:
    """Each step by autograd and a torch optimizer, on any backend.

    Of several processes each takes the ratings of its users from every batch; gradients of items and centers are added
    up, and all make the same step on these.
    """

    def __init__(self, model: RatingModel, batches: BatchIterator, shard: Shard | None = None) -> None:
        self._model, self._batches = model, batches
        self._shard = shard or _everything(batches)
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
                values = self._add_gradients(batch, epoch)
                if not math.isfinite(values[0]):
                    raise diverged(values[0], epoch, number, self._batches, self.optimizer)
                self._torch_optimizer.step()
                sums += values * len(batch.ratings)
                for listener in listeners:
                    listener.on_batch_end(epoch, number)
        return mean_terms(sums, len(self._batches.dataset))

    def _add_gradients(self, batch: Batch, epoch: int) -> npt.NDArray[np.float64]:
        """The loss terms [7] of a batch, and gradients at the parameters where they are finite."""
        processes = self._shard.processes
        own, share = (batch, 1.0) if processes.size == 1 else self._own_part(batch)
        values, total = np.zeros(len(LossTerms._fields)), None
        if share:
            # every term is a mean over ratings, or the same for all (spread): those of the parts add up by their shares
            terms = self._model.batch_loss(*own, epoch=epoch)
            values, total = torch.stack([term.detach() for term in terms]).double().cpu().numpy(), terms.total * share
        values = processes.sum(values * share)
        if not math.isfinite(values[0]):
            return values
        if total is not None:
            total.backward()
        if processes.size > 1:
            own_users = self._model.native_parameters("user")
            for parameter in self._model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if parameter is not own_users.table and parameter is not own_users.bias:
                    processes.sum_(parameter.grad)
        return values

    def _own_part(self, batch: Batch) -> tuple[Batch, float]:
        """The ratings of the own users, by their rows here, and their share in the batch."""
        users = self._shard.users
        bounds = torch.tensor([users.start, users.stop], device=batch.user_idx.device)
        first, last = torch.searchsorted(batch.user_idx, bounds).tolist()
        part = Batch(batch.user_idx[first:last] - users.start, batch.item_idx[first:last], batch.ratings[first:last])
        return part, (last - first) / len(batch.ratings)


class NativeEpochs:
    """All steps in the C++ engine: batches dealt, loss, gradients and optimizer in one call.

    Rows that a batch does not touch are left alone; Adam's, until they are needed or the epoch ends. Several processes
    have the ratings and rows of their own users and make the steps of their own items; see `csrc/cpu/exchange.hpp`.
    """

    def __init__(self, model: RatingModel, batches: BatchIterator, shard: Shard | None = None) -> None:
        self._model, self._batches = model, batches
        self._shard = shard or _everything(batches)
        self.optimizer: OptimizerState = _NativeState(model)
        self._trainer = native.Trainer(
            **_columns_of(batches, self._shard),
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
            with self._shard.processes.reached():
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
        state = {name: self.optimizer.state[p] for name, p in parameters.tensors().items()}
        if side == "item" and self._shard.processes.size > 1:
            parameters, state = _own_rows(parameters, state, self._shard.items)
        return native.side_state(parameters, state)


class _NativeState(FreshState):
    """With what the native engine keeps besides: the first step that each row has not made yet."""

    def __init__(self, model: RatingModel) -> None:
        super().__init__(model)
        if model.config.optimizer == "adam":
            for side in SIDES:
                table = model.native_parameters(side).table
                self.state[table]["next_step"] = torch.zeros(len(table), dtype=torch.int32)


def _everything(batches: BatchIterator) -> Shard:
    """The shard of a process that is alone."""
    ratings = batches.dataset
    return Shard.of(Processes(), len(ratings.users), len(ratings.items), len(ratings), lambda: ratings.user_offsets)


def _own_rows(
    side: native.SideParameters, state: dict[str, Any], rows: slice
) -> tuple[native.SideParameters, dict[str, Any]]:
    """The rows of some entities, and their optimizer state, on the same memory."""
    own = native.SideParameters(
        side.table.data[rows],
        None if side.bias is None else side.bias.data[rows],
        side.centers,
        side.n_clusters,
        None if side.l2_scale is None else side.l2_scale[rows],
    )
    of_rows = {name: {key: tensor[rows] for key, tensor in state[name].items()} for name in state if name != "centers"}
    return own, state | of_rows


def _columns_of(batches: BatchIterator, shard: Shard) -> dict[str, Any]:
    """The own ratings as the native engine takes them: arrays, or files and how it goes through them; and what it has
    to know of other processes.
    """
    ratings, processes = batches.dataset, shard.processes
    columns: dict[str, Any] = {"user_offsets": ratings.user_offsets}
    if isinstance(ratings, RatingsDataset):
        columns |= {"items": ratings.item_idx, "ratings": ratings.ratings, "dealt_at_once": DEALT_AT_ONCE}
    else:
        store = ratings.store
        columns |= {"items": str(store.item_path), "ratings": str(store.rating_path)}
        columns |= {"rating_values": store.rating_values, "dealt_at_once": ratings.dealt_at_once}
    if processes.size == 1:
        return columns
    users, own = shard.users, shard.ratings
    columns["user_offsets"] = columns["user_offsets"][users.start : users.stop + 1] - own.start
    if isinstance(ratings, RatingsDataset):
        columns |= {"items": ratings.item_idx[own], "ratings": ratings.ratings[own]}
    # all must deal the same batches at a time; and what they tell each other of them, a number for each item, must not
    # take more memory than the ratings
    runs = -(-own.stop // batches.n_batches) - own.start // batches.n_batches
    at_once = int(processes.gather(columns["dealt_at_once"] // runs).min())
    most = columns["dealt_at_once"] // len(ratings.items)
    together = max(1, min(at_once, int(processes.gather(most).min())))
    share = native.Share(
        processes.rank, processes.size, own.start, len(ratings), processes.all_to_all, open_rings(processes)
    )
    return columns | {"dealt_at_once": together * runs, "share": share}


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
