"""Epochs that run on a device from end to end: the host launches, and waits once, when an epoch is over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.data.batches import BatchIterator
from mfdmc_fast.device_batches import make_device_batches
from mfdmc_fast.model import SIDES, MFDMCModel, SideName
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.batch_loss import (
    BatchSide,
    adagrad_steps,
    adam_steps,
    batch_pass,
    loss_constants,
)
from mfdmc_fast.ops.triton_kernels.entity_backward import Update
from mfdmc_fast.ops.triton_kernels.grouping import Groups
from mfdmc_fast.optim import ADAGRAD_EPSILON, ADAM_BETAS, ADAM_EPSILON, OptimizerState
from mfdmc_fast.steps import BatchListener, FreshState, diverged, mean_terms, rates_of_steps

# recording a batch takes the host as long as running it once, and every recorded launch takes memory
_MAX_BATCHES_OF_GRAPH = 64
# rows of constants begin at multiples of this many numbers: kernels are compiled for the alignment of their arguments
_ALIGNMENT = 16


class DeviceEpochs:
    """All steps by the Triton kernels, without waiting for the device before the end of an epoch.

    As with torch's Adam, every row of the tables moves in every step, also those without ratings in the batch. Ratings
    stay on the device, where they find room; see `device_batches`.

    On a GPU an epoch of few batches is recorded as a CUDA graph once its shapes have lasted for an epoch, which also
    compiled the kernels; pruning begins this anew. Deterministic: the same bits on every run, recorded or not.

    Args:
        model: on the device.
        batches: of the run.
        memory_bytes: as in `make_device_batches`.
    """

    def __init__(self, model: MFDMCModel, batches: BatchIterator, memory_bytes: int | None = None) -> None:
        self._model, self._batches = model, batches
        self._state = FreshState(model)
        self.optimizer: OptimizerState = self._state
        device, n_batches = model.device, batches.n_batches
        n_entities = model.n_entities
        self._data = make_device_batches(batches, n_entities["user"], n_entities["item"], device, memory_bytes)
        rates = rates_of_steps(model, self.optimizer, n_batches)
        if model.config.optimizer == "adagrad":
            steps = adagrad_steps(rates, epsilon=ADAGRAD_EPSILON)
        else:
            steps = adam_steps(rates, betas=ADAM_BETAS, epsilon=ADAM_EPSILON)
        self._acc = launch.accumulator(model.user.centers.dtype)
        padded = np.zeros((len(steps), _ALIGNMENT))
        padded[:, : steps.shape[1]] = steps
        # of the run, and of the epoch that is run: a graph reads always the same memory
        self._steps_of_run = torch.from_numpy(padded).to(device, self._acc)
        self._steps = self._steps_of_run[:n_batches].clone()
        self._seeds = torch.zeros(n_batches, _ALIGNMENT, dtype=torch.int64, device=device)
        self._loss = self._loss_of(1)
        self._terms = torch.zeros(n_batches, 7, dtype=self._acc, device=device)
        self._may_record = device.type == "cuda" and self._data.static and n_batches <= _MAX_BATCHES_OF_GRAPH
        self._graph: torch.cuda.CUDAGraph | None = None
        self._layout_of_last_epoch: tuple[Any, ...] = ()

    @torch.no_grad()
    def run(self, epoch: int, listeners: Sequence[BatchListener]) -> dict[str, float]:
        """As `Epochs.run`; the listeners hear of all batches when the epoch is over."""
        with launch.on(self._model.device):
            return self._run(epoch, listeners)

    def _run(self, epoch: int, listeners: Sequence[BatchListener]) -> dict[str, float]:
        n_batches = self._batches.n_batches
        first_step = (epoch - 1) * n_batches
        self._steps.copy_(self._steps_of_run[first_step : first_step + n_batches])
        self._seeds[:, 0] = torch.arange(first_step, first_step + n_batches, device=self._seeds.device)
        self._loss.copy_(self._loss_of(epoch))
        self._data.prepare(epoch)
        self._run_steps()
        sized = torch.cat([self._terms.double(), self._data.sizes()[:, None].double()], dim=1)
        terms = sized.cpu().numpy()  # the only wait
        for number, loss in enumerate(terms[:, 0].tolist(), start=1):
            if not math.isfinite(loss):
                raise diverged(loss, epoch, number, self._batches, self.optimizer)
        for number in range(1, n_batches + 1):
            for listener in listeners:
                listener.on_batch_end(epoch, number)
        return mean_terms(terms[:, -1] @ terms[:, :-1], len(self._batches.dataset))

    def _run_steps(self) -> None:
        layout = self._layout()
        if not self._may_record or layout != self._layout_of_last_epoch:
            self._layout_of_last_epoch, self._graph = layout, None
            self._launch_steps()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._launch_steps()
        self._graph.replay()

    def _launch_steps(self) -> None:
        optimizer, combine = self._model.config.optimizer, self._model.config.combine
        for batch, (by_user, by_item) in enumerate(self._data.groups()):
            user, item = self._side("user", by_user), self._side("item", by_item)
            update = Update(optimizer, self._steps[batch], self._seeds[batch])
            self._terms[batch].copy_(batch_pass(user, item, self._loss, combine, update))

    def _side(self, name: SideName, groups: Groups) -> BatchSide:
        parameters = self._model.native_parameters(name)
        state = {key: self.optimizer.state[tensor] for key, tensor in parameters.tensors().items()}
        return BatchSide(_detached(parameters), groups, into=state)

    def _loss_of(self, epoch: int) -> Tensor:
        model = self._model
        return loss_constants(
            model.loss_weights(epoch),
            spread_margin=model.spread_margin,
            global_mean=model.global_mean,
            dtype=model.user.centers.dtype,
            device=model.device,
        )

    def _layout(self) -> tuple[Any, ...]:
        """Where everything is that a recorded step reads or writes, with its shape."""
        found: list[Any] = []
        for side in SIDES:
            parameters = self._model.native_parameters(side)
            tensors = [*parameters.tensors().values(), parameters.l2_scale]
            for parameter in parameters.tensors().values():
                tensors += self.optimizer.state[parameter].values()
            found.append(parameters.n_clusters)
            found += [None if t is None else (t.data_ptr(), t.shape) for t in tensors]
        return tuple(found)


def _detached(side: SideParameters) -> SideParameters:
    """The same memory, unknown to autograd."""
    bias = None if side.bias is None else side.bias.detach()
    centers = None if side.centers is None else side.centers.detach()
    return replace(side, table=side.table.detach(), bias=bias, centers=centers)
