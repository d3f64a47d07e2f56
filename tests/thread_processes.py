"""Threads that play the processes which train a model together, so that tests need neither processes nor a network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mfdmc_fast.distributed import Processes

_T = TypeVar("_T")


class _Meeting:
    """Where the threads hand each other what they have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size
        self.letters: dict[tuple[int, int], queue.Queue[Tensor]] = {
            (a, b): queue.Queue() for a in range(size) for b in range(size)
        }


class ThreadProcesses(Processes):
    """One of the threads."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        super().__init__(rank, size)
        self._meeting = meeting

    def _of_all(self, value: Any) -> list[Any]:
        self._meeting.given[self.rank] = value
        self._meeting.barrier.wait()
        found = list(self._meeting.given)
        self._meeting.barrier.wait()
        return found

    def all_to_all(
        self,
        sent: npt.NDArray[np.uint8],
        sent_sizes: list[int],
        received: npt.NDArray[np.uint8],
        received_sizes: list[int],
    ) -> None:
        parts = [
            np.split(bytes_of, np.cumsum(sizes))[self.rank]
            for bytes_of, sizes in self._of_all((sent.copy(), sent_sizes))
        ]
        assert [len(part) for part in parts] == received_sizes
        received[:] = np.concatenate(parts)

    def gather(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.stack(self._of_all(np.atleast_1d(np.array(values, dtype=np.float64))))

    def sum_(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._of_all(tensor.clone())).sum(0))

    def from_first(self, value: Any) -> Any:
        return self._of_all(value)[0]

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        tensor.copy_(self._of_all(tensor.clone())[source])

    def send(self, tensor: Tensor, target: int) -> None:
        self._meeting.letters[self.rank, target].put(tensor.clone())

    def receive_(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._meeting.letters[source, self.rank].get(timeout=60))


_mine = threading.local()


def together(size: int, work: Callable[[Processes], _T], monkeypatch: pytest.MonkeyPatch) -> list[_T]:
    """What `work` returns in each of so many processes; raises what the first of them raised.

    In `work`, `Processes.current` gives the processes.
    """
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    raised: list[BaseException] = []

    def current() -> Processes:
        return getattr(_mine, "processes", None) or Processes()

    def play(rank: int) -> None:
        _mine.processes = ThreadProcesses(rank, size, meeting)
        try:
            results[rank] = work(_mine.processes)
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                raised.append(error)
            meeting.barrier.abort()

    monkeypatch.setattr(Processes, "current", staticmethod(current))
    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return results
