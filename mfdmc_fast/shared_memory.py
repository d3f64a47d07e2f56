"""Memory that the processes of one machine share, for their messages in training; others use torch.distributed's."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mfdmc_fast.distributed import Processes
from mfdmc_fast.ops import native

_FOLDER = Path("/dev/shm")
# of the memory in all, and of a ring from one process to another: containers have little
_MOST_BYTES, _MOST_RING_BYTES = 32 << 20, 1 << 20
_PIDS = Path("/proc/self/ns/pid")


def open_rings(processes: Processes) -> Any:
    """The compiled module's handle of rings between all processes, or None where they are not on one machine that has
    what is needed (Linux, some free space in /dev/shm). All processes call it, and get it or get None.
    """
    capacity = min(_MOST_RING_BYTES, _MOST_BYTES // processes.size**2) // 64 * 64  # whole lines of the cache
    with contextlib.ExitStack() as files:
        path, memory = None, None
        mark = secrets.token_bytes(16)
        if processes.is_first:
            path, memory = _made(native.ring_bytes(processes.size, capacity) + len(mark), mark, files)
        found = processes.from_first([None if path is None else str(path), mark.hex()])
        if memory is None and found[0] is not None:
            memory = _opened(Path(found[0]), bytes.fromhex(found[1]))
        ends = _ends(processes)
        failed = processes.any(memory is None or ends is None)
        if failed or memory is None or ends is None:
            for end in ends or []:
                if end >= 0:
                    os.close(end)
            return None
        content = np.frombuffer(memory, dtype=np.uint8)[: -len(mark)]
        return native.rings(content, capacity, processes.rank, ends)


def _made(size: int, mark: bytes, files: contextlib.ExitStack) -> tuple[Path | None, mmap.mmap | None]:
    """A file with the mark at its end, and its memory; deleted when `files` are closed, which leaves the memory."""
    try:
        handle, name = tempfile.mkstemp(prefix="mfdmc-", dir=_FOLDER)
    except OSError:
        return None, None
    files.callback(os.close, handle)
    files.callback(os.unlink, name)
    try:
        os.posix_fallocate(handle, 0, size)  # what is not there when it is written to would end the process
        os.pwrite(handle, mark, size - len(mark))
        return Path(name), mmap.mmap(handle, size)
    except OSError:
        return None, None


def _opened(path: Path, mark: bytes) -> mmap.mmap | None:
    try:
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
    except (OSError, ValueError):
        return None
    return memory if memory[-len(mark) :] == mark else None


def _ends(processes: Processes) -> list[int] | None:
    """A descriptor for each process that becomes readable when it ends, -1 for this one; None where that cannot be."""
    watch: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    space = _PIDS.stat().st_ino if _PIDS.exists() else 0
    known = processes.gather([os.getpid(), space])
    if watch is None or not space or len(np.unique(known[:, 1])) > 1:
        return None
    ends: list[int] = []
    try:
        for rank, pid in enumerate(known[:, 0].astype(int).tolist()):
            ends.append(-1 if rank == processes.rank else watch(pid))
    except OSError:
        for end in ends:
            if end >= 0:
                os.close(end)
        return None
    return ends
