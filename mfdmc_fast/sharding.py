"""The rows of a model and its optimizer that a process trains, and how they come together again.

While several processes train, the tables of users have their own rows alone. Those of items have all, of which the own
ones count; `share_items` brings the others up to date. Centers are the same in all.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.distributed import Shard
from mfdmc_fast.model import SIDES, RatingModel, SideName

# types of tensors by their names in a message
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32)}


class ShardedRows:
    """Which rows of which tensors belong to whom.

    Args:
        model: with the rows of all; `take` leaves it those of the own users.
        shard: who has what.
    """

    def __init__(self, model: RatingModel, shard: Shard) -> None:
        self._model, self._shard, self._processes = model, shard, shard.processes
        sides: dict[int, SideName] = {}
        for side in SIDES:
            parameters = model.native_parameters(side)
            sides |= {id(p): side for p in (parameters.table, parameters.bias) if p is not None}
        # by the names of parameters; None for those without rows of entities
        self._side_of = {name: sides.get(id(parameter)) for name, parameter in model.named_parameters()}
        self._all_scales = model.native_parameters("user").l2_scale

    def take(self) -> None:
        """Leave the tables of users their own rows, in memory of their own."""
        if self._processes.size == 1:
            return
        users = self._shard.users
        for parameter in self._rows_of("user"):
            parameter.data = parameter.data[users].clone()
        self._model.n_entities["user"] = users.stop - users.start
        if self._all_scales is not None:
            self._model.set_l2_scale("user", self._all_scales[users].clone())

    def totals(self) -> dict[str, int]:
        """Rows of all processes together, by the names of the parameters that have rows of entities."""
        bounds = {"user": self._shard.user_bounds, "item": self._shard.item_bounds}
        return {name: bounds[side][-1] for name, side in self._side_of.items() if side is not None}

    def share_items(self) -> None:
        """Bring the rows of items of other processes up to date."""
        for parameter in self._rows_of("item"):
            self._fill(parameter.data, self._shard.item_bounds)

    def complete(self) -> None:
        """Give the model the rows of all users and items, in all processes."""
        if self._processes.size == 1:
            return
        bounds = self._shard.user_bounds
        for parameter in self._rows_of("user"):
            table = parameter.data.new_empty(bounds[-1], *parameter.shape[1:])
            table[self._shard.users] = parameter.data
            self._fill(table, bounds)
            parameter.data = table
        self._model.n_entities["user"] = bounds[-1]
        self._model.set_l2_scale("user", self._all_scales)
        self.share_items()

    def align_centers(self, state: Any) -> None:
        """Let centers and their optimizer state be those of process 0 where a process has others: all make the same
        steps, but machines of different kinds may round differently.
        """
        if self._processes.size == 1:
            return
        shared = [p for name, p in self._model.named_parameters() if self._side_of[name] is None]
        tensors = [t for p in shared for t in (p.data, *state.get(p, {}).values()) if isinstance(t, Tensor)]
        checksum = 0
        for tensor in tensors:
            checksum = zlib.crc32(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes(), checksum)
        if len(np.unique(self._processes.gather(checksum))) > 1:
            for tensor in tensors:
                self._processes.broadcast_(tensor)

    def to_first(self, name: str, tensor: Tensor) -> Tensor | None:
        """A parameter, or a tensor of its optimizer state, with the rows of all in process 0; None in the others.

        Args:
            name: of the parameter.
            tensor: what this process has of it.
        """
        processes, bounds = self._processes, self._bounds_of(name, tensor)
        if bounds is None or processes.size == 1:
            return tensor if processes.is_first else None
        own = tensor if self._side_of[name] == "user" else tensor[self._shard.items]
        if not processes.is_first:
            processes.send(own.contiguous(), 0)
            return None
        whole = tensor.new_empty(bounds[-1], *tensor.shape[1:])
        whole[: bounds[1]] = own
        for rank in range(1, processes.size):
            processes.receive_(whole[bounds[rank] : bounds[rank + 1]], rank)
        return whole

    def from_first(self, name: str, tensor: Tensor | None, dtype: str, shape: list[int]) -> Tensor:
        """The inverse: what this process has of a tensor that process 0 has whole.

        Args:
            name: of the parameter.
            tensor: in process 0, on the CPU.
            dtype, shape: of the whole tensor.
        """
        processes = self._processes
        if processes.size == 1:
            assert tensor is not None
            return tensor
        if self._side_of[name] != "user" or not shape:
            content = torch.empty(shape, dtype=_DTYPES[dtype]) if tensor is None else tensor.contiguous()
            processes.broadcast_(content)
            return content
        bounds = self._shard.user_bounds
        if tensor is None:
            own = torch.empty(self._shard.users.stop - self._shard.users.start, *shape[1:], dtype=_DTYPES[dtype])
            processes.receive_(own, 0)
            return own
        for rank in range(1, processes.size):
            processes.send(tensor[bounds[rank] : bounds[rank + 1]].contiguous(), rank)
        return tensor[: bounds[1]].clone()

    def _rows_of(self, side: SideName) -> list[torch.nn.Parameter]:
        return [p for name, p in self._model.named_parameters() if self._side_of[name] == side]

    def _bounds_of(self, name: str, tensor: Tensor) -> tuple[int, ...] | None:
        side = self._side_of[name]
        if side is None or tensor.ndim == 0:  # also Adam's counter of steps, in torch
            return None
        return self._shard.user_bounds if side == "user" else self._shard.item_bounds

    def _fill(self, table: Tensor, bounds: tuple[int, ...]) -> None:
        for rank in range(self._processes.size):
            self._processes.broadcast_(table[bounds[rank] : bounds[rank + 1]], rank)
