"""Several processes that train one model together, by torch.distributed: who has what, and what they tell each other.

Users, with all their ratings, belong to one process each; so do items, whose owner makes their steps. Centers are in
all. A process that is alone is the case of one: it has everything, and nothing needs to be told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from mfdmc_fast.errors import ConfigError, MFDMCError, ProcessEnded

# a process that ends is noticed at once, as its connections close; this is for one that hangs, or a network that fails
_LONGEST_WAIT = timedelta(minutes=30)

_alone: ContextVar[bool] = ContextVar("alone", default=False)


class Processes:
    """The processes that work on one model, seen from one of them. All must call the same methods in the same order.

    Attributes:
        rank: the number of this one; number 0 writes files.
        size: how many there are.

    Every method raises `ProcessEnded` where another process has ended or cannot be reached.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size = rank, size
        self._group = group

    @classmethod
    def current(cls) -> Processes:
        """Those of the initialized process group, or this process alone."""
        if _alone.get() or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        # messages are about arrays in the memory of the CPU, which a group for GPUs alone does not take
        group = None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def all_to_all(
        self,
        sent: npt.NDArray[np.uint8],
        sent_sizes: list[int],
        received: npt.NDArray[np.uint8],
        received_sizes: list[int],
    ) -> None:
        """Send bytes to each process and fill `received` with those from each, one after another by rank."""
        with self.reached():
            dist.all_to_all_single(
                torch.from_numpy(received), torch.from_numpy(sent), received_sizes, sent_sizes, group=self._group
            )

    def gather(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """[size, n] from the [n] numbers of each process."""
        mine = torch.from_numpy(np.atleast_1d(np.array(values, dtype=np.float64)))
        if self.size == 1:
            return mine.numpy()[None]
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self.reached():
            dist.all_gather(found, mine, group=self._group)
        return torch.stack(found).numpy()

    def sum(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Sums [n] over the processes, the same bits in all."""
        total: npt.NDArray[np.float64] = self.gather(values).sum(axis=0)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.gather(float(flag)).any())

    def sum_(self, tensor: Tensor) -> None:
        """Let a tensor be its sum over the processes."""
        if self.size > 1:
            with self.reached():
                dist.all_reduce(tensor, group=self._group_of(tensor))

    def from_first(self, value: Any) -> Any:
        """Plain values of process 0, in all; what the others give is not looked at."""
        if self.size == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        with self.reached():
            dist.broadcast(length, 0, group=self._group)
            if not self.is_first:
                text = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(text, 0, group=self._group)
        return json.loads(text.numpy().tobytes())

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        """Let a tensor have the content that it has in the process `source`."""
        if self.size > 1 and tensor.numel():
            with self.reached():
                dist.broadcast(tensor, source, group=self._group_of(tensor))

    def send(self, tensor: Tensor, target: int) -> None:
        """Send a tensor to a process that calls `receive_`."""
        if tensor.numel():
            with self.reached():
                dist.send(tensor, target, group=self._group_of(tensor))

    def receive_(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor with what a process sends."""
        if tensor.numel():
            with self.reached():
                dist.recv(tensor, source, group=self._group_of(tensor))

    def agree(self, what: dict[str, str]) -> None:
        """ConfigError unless these texts are the same in all processes; the message names those that are not."""
        expected = self.from_first(what)
        differing = sorted(name for name in expected.keys() | what.keys() if expected.get(name) != what.get(name))
        if self.any(bool(differing)):
            named = ", ".join(differing) or "what it was given"
            raise ConfigError(
                f"process {self.rank} of {self.size} was not given the same as the others ({named}): start all with the"
                " same command, the same files and the same version"
            )

    def _group_of(self, tensor: Tensor) -> Any:
        return self._group if tensor.device.type == "cpu" else None

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turns what is raised where another process cannot be reached into `ProcessEnded`."""
        try:
            yield
        except MFDMCError:
            raise
        except (RuntimeError, ConnectionError) as error:  # of gloo, of NCCL, of shared memory: each has its own words
            reason = str(error).partition("\n")[0]
            raise ProcessEnded(
                f"another of the {self.size} processes has ended or cannot be reached, so process {self.rank} ends, too"
                f" ({reason}). What ended it is in its own messages. With --checkpoint-dir (checkpoint_dir), the same"
                " command with --resume continues from the last checkpoint, also with another number of processes"
            ) from error


@contextmanager
def alone() -> Iterator[None]:
    """What is trained inside is a matter of this process alone, whatever others there are."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def n_started() -> int:
    """How many processes torchrun, or what sets its variables, has started; 1 where nothing has."""
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 1
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE = {text!r}: must be the number of processes; torchrun sets it")
    return int(text)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Be one of the processes that torchrun has started, or alone where it has started none.

    Args:
        device: of the training; for `cuda` each process of a machine takes the GPU of its LOCAL_RANK.
    """
    if n_started() == 1 or dist.is_initialized():
        yield Processes.current()
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "cpu:gloo", timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise MFDMCError(
            f"the {n_started()} processes do not find each other ({str(error).partition(chr(10))[0]}); start them with"
            " torchrun, and see that --rdzv-endpoint can be reached from every machine (GLOO_SOCKET_IFNAME names the"
            " network interface)"
        ) from error
    try:
        yield Processes.current()
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Shard:
    """What the processes have of the users, items and ratings.

    Attributes:
        processes: whose they are.
        user_bounds, item_bounds, rating_bounds: [size + 1] process r has the rows from bounds[r] up to bounds[r + 1];
            ratings are numbered in (user, item) order.
    """

    processes: Processes
    user_bounds: tuple[int, ...]
    item_bounds: tuple[int, ...]
    rating_bounds: tuple[int, ...]

    @classmethod
    def of(
        cls,
        processes: Processes,
        n_users: int,
        n_items: int,
        n_ratings: int,
        user_offsets: Callable[[], npt.NDArray[np.int64]],
    ) -> Shard:
        """Shares of about as many ratings each, at least one.

        Args:
            processes: who shares.
            n_users, n_items, n_ratings: of all.
            user_offsets: gives [n_users + 1] user u has the ratings offsets[u] : offsets[u + 1].

        Raises:
            ConfigError: more processes than users with ratings.
        """
        size = processes.size
        if size == 1:
            return cls(processes, (0, n_users), (0, n_items), (0, n_ratings))
        offsets = user_offsets()
        starts = np.unique(offsets[:-1][np.diff(offsets) > 0])  # numbers of the first ratings of users
        if len(starts) < size:
            raise ConfigError(
                f"{size} processes, but only {len(starts)} users with ratings: start at most one process a user"
            )
        cuts = np.arange(1, size) * (n_ratings / size)
        after = np.searchsorted(starts, cuts).clip(1, len(starts) - 1)
        chosen = after - (cuts - starts[after - 1] < starts[after] - cuts)  # the nearest
        # every process has a user: not before the one with its number, and as many are left as there are processes
        for r in range(size - 1):
            least = chosen[r - 1] + 1 if r else 1
            chosen[r] = min(max(int(chosen[r]), least), len(starts) - size + r + 1)
        ratings = (0, *starts[chosen].tolist(), n_ratings)
        users = (0, *(np.searchsorted(offsets, starts[chosen], side="right") - 1).tolist(), n_users)
        # as the native engine has them
        return cls(processes, users, tuple(n_items * r // size for r in range(size + 1)), ratings)

    @property
    def users(self) -> slice:
        """Own rows of users."""
        return self._own(self.user_bounds)

    @property
    def items(self) -> slice:
        """Rows of the items that this process owns."""
        return self._own(self.item_bounds)

    @property
    def ratings(self) -> slice:
        """Own ratings."""
        return self._own(self.rating_bounds)

    def own_counts(self, counts: dict[Any, npt.NDArray[np.int64]]) -> dict[Any, npt.NDArray[np.int64]]:
        """Ratings of the own users, and of all items with 0 for those of other processes.

        Args:
            counts: of all users (`user`) and items (`item`).
        """
        items = np.zeros_like(counts["item"])
        items[self.items] = counts["item"][self.items]
        return {"user": counts["user"][self.users], "item": items}

    def _own(self, bounds: tuple[int, ...]) -> slice:
        return slice(bounds[self.processes.rank], bounds[self.processes.rank + 1])
