"""A folder of checkpoints: the state of one run after some of its epochs, from which it can be continued.

| file | content |
|---|---|
| `epoch-00012.safetensors` | the state after an epoch; the last few are kept |
| `teacher.safetensors` | what a teacher predicted, where there is one; it stays as long as the folder |
| `lock` | empty; held by the process that trains, and free when that ends in whatever way |

The metadata key `mfdmc_fast_checkpoint` of a file is a JSON object: `identity`, which says what the run was given, and
`state`, which `mfdmc_fast.training` fills together with the tensors. A checksum covers every byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import reprlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from typing_extensions import Self

from mfdmc_fast import __version__
from mfdmc_fast.errors import ConfigError, DamagedCheckpoint, DataError, ModelFileError
from mfdmc_fast.tensor_files import read_tensors, write_tensors

FORMAT_VERSION = 1
DEFAULT_EVERY, DEFAULT_KEEP = "1min", 2
_KEY = "mfdmc_fast_checkpoint"
_LOCK = "lock"
_DIGEST = "blake2b:"
# a value in a message; what a file holds may be long, or nested deep
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = 100
_MOST_NAMED = 10
_EPOCH_FILE = re.compile(r"epoch-(\d{5,})\.safetensors")
# what `replacing` leaves of a process that was killed
_TEMPORARY_FILE = re.compile(r"\.(epoch-\d{5,}|teacher)\.safetensors\..*\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file.
        state: plain values.
        tensors: by name.
    """

    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]


Check = Callable[[Checkpoint], None]


class Checkpoints:
    """The checkpoints of one run; a context manager that keeps other processes out of the folder.

    Args:
        folder: where they are; made where it does not exist.
        every: epochs from one to the next (5, or "5"), or minutes ("10min"); None: `DEFAULT_EVERY`.
        keep: how many of the last stay; None: `DEFAULT_KEEP`.
        resume: continue from the last one, where there is one; without it, a folder with checkpoints is refused.

    Raises:
        ConfigError: a wrong value, or checkpoints in the folder without `resume`; on entering, also another process
            that holds the folder.
        DataError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | str | None = None,
        keep: int | None = None,
        resume: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._epochs, self._seconds = _interval(DEFAULT_EVERY if every is None else every)
        self._keep = DEFAULT_KEEP if keep is None else keep
        if isinstance(self._keep, bool) or not isinstance(self._keep, int) or self._keep < 1:
            raise ConfigError(f"checkpoint_keep = {keep!r}: must be 1 or more")
        self._resume = resume
        self._identity: dict[str, Any] = {"checkpoint format": FORMAT_VERSION, "version of mfdmc_fast": __version__}
        self._saved_at = time.monotonic()
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError("is not a folder; give another one for checkpoints", source=str(folder))
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK):
            raise DataError("the folder cannot be written; give another one for checkpoints", source=str(folder))
        self._refuse_to_overwrite()

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = open(self.folder / _LOCK, "ab")
        except OSError as error:
            raise DataError(f"no checkpoints can be written: {error.strerror}", source=str(self.folder)) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_to_overwrite()  # what another process has written meanwhile
            for path in self.folder.iterdir():
                if _TEMPORARY_FILE.fullmatch(path.name):
                    path.unlink()
        except BaseException as error:
            self._lock.close()
            if isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"{self.folder}: another process is training with this folder of checkpoints; wait for its end, or"
                    " give another folder"
                ) from None
            if isinstance(error, OSError):
                raise DataError(f"cannot be locked: {error.strerror}", source=str(self.folder)) from error
            raise
        self._saved_at = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def identify(self, **given: Any) -> None:
        """Say what the run is given, in plain values or digests: a checkpoint is of use only to a run that is given the
        same.
        """
        self._identity |= given

    def last(self, check: Check) -> Checkpoint | None:
        """The state after the last epoch that can be used, None without `resume` or where there is none.

        Warns of files that are damaged (`DamagedCheckpoint`).

        Args:
            check: raises a `LookupError`, `TypeError`, `ValueError` or `AttributeError` where the content of a file
                cannot be used.

        Raises:
            ConfigError: it belongs to a run that was given something else; the message says what.
        """
        for epoch in sorted(self._epochs_saved(), reverse=True) if self._resume else ():
            found = self.load(_epoch_name(epoch), check)
            if found is not None:
                return found
        return None

    def load(self, name: str, check: Check) -> Checkpoint | None:
        """As `last`, for a single file by its name without the end."""
        path = self._path(name)
        if not self._resume or not path.exists():
            return None
        try:
            metadata, tensors = read_tensors(path, sealed=True)
            header = json.loads(metadata[_KEY])
            identity, state = header["identity"], header["state"]
            if not isinstance(identity, dict) or not isinstance(state, dict):
                raise TypeError("two JSON objects were wanted")
        except ModelFileError as error:
            _pass_over(str(error))
            return None
        except (LookupError, TypeError, ValueError, RecursionError):  # the last: JSON that is nested too deep
            _pass_over(f"{path}: not a checkpoint of mfdmc_fast")
            return None
        self._check_identity(path, identity)
        found = Checkpoint(path, state, tensors)
        try:
            check(found)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"missing {error}" if isinstance(error, KeyError) else str(error)
            _pass_over(f"{path}: damaged or of another run ({what})")
            return None
        return found

    def save(self, name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a file; one of the same name is replaced only on success.

        Args:
            name: of the file, without its end.
            state: plain values.
            tensors: no two of them on the same storage.

        Raises:
            DataError: it cannot be written; what was saved before is as it was.
        """
        header = {"identity": self._identity, "state": dict(state)}
        try:
            write_tensors(self._path(name), tensors, {_KEY: json.dumps(header, allow_nan=False)}, sealed=True)
        except DataError as error:
            raise DataError(
                f"{error}. The checkpoints before it are intact: make room, or mend what is wrong, and resume"
            ) from error
        self._saved_at = time.monotonic()

    def save_epoch(self, epoch: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the state after an epoch, and delete what is no longer among the last ones."""
        self.save(_epoch_name(epoch), state, tensors)
        saved = sorted(self._epochs_saved())
        # a later epoch than this was damaged, or the run would have continued after it
        kept = [e for e in saved if e <= epoch][-self._keep :]
        for other in set(saved) - set(kept):
            self._path(_epoch_name(other)).unlink(missing_ok=True)

    def due(self, epoch: int) -> bool:
        """Whether the state after this epoch is to be written."""
        if self._epochs is not None:
            return epoch % self._epochs == 0
        return time.monotonic() - self._saved_at >= self._seconds

    def what_there_is(self) -> str | None:
        """In words, the last state that could be continued from; None where nothing was saved."""
        epochs = self._epochs_saved()
        if epochs:
            return f"{self._path(_epoch_name(max(epochs)))} holds the state after epoch {max(epochs)}"
        teacher = self._path("teacher")
        return f"{teacher} holds what the teacher predicted" if teacher.exists() else None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _epochs_saved(self) -> list[int]:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [int(found[1]) for found in map(_EPOCH_FILE.fullmatch, names) if found]

    def _refuse_to_overwrite(self) -> None:
        there = None if self._resume else self.what_there_is()
        if there is not None:
            raise ConfigError(
                f"{there}: continue that run with resume, or give another folder, or delete the checkpoints"
            )

    def _check_identity(self, path: Path, identity: Mapping[str, Any]) -> None:
        changed = []
        for name in dict.fromkeys([*identity, *self._identity]):
            then, now = identity.get(name), self._identity.get(name)
            if then != now:
                shown = [_BRIEFLY.repr(value) for value in (then, now)]
                digests = any(_DIGEST in text for text in shown)
                changed.append(f"{name[:100]} changed" if digests else f"{name[:100]} was {shown[0]} and is {shown[1]}")
        if changed:
            more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
            raise ConfigError(
                f"{path}: belongs to another run: {'; '.join(changed[:_MOST_NAMED])}{more}."
                " Give what that run was given, or another folder"
            )


def digest(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """A text that two sequences of arrays share only if they are equal in number, dtype, shape and content.

    Args:
        arrays: of numbers; looked at one by one.
    """
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return _DIGEST + found.hexdigest()


def _pass_over(reason: str) -> None:
    """Warn of a file; the place is that in `fit`."""
    warnings.warn(f"{reason}. It is passed over; what was saved before it is used", DamagedCheckpoint, stacklevel=3)


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


def _interval(every: int | str) -> tuple[int | None, float]:
    """Epochs from one checkpoint to the next; or None and seconds."""
    text = str(every).strip()
    kind: Callable[[str], float] = int
    if text.endswith("min"):
        kind, text = float, text.removesuffix("min")
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if isinstance(every, bool) or not 0 < number < math.inf:
        raise ConfigError(f"checkpoint_every = {every!r}: write epochs such as 5, or minutes such as 10min")
    return (int(number), math.inf) if kind is int else (None, 60 * number)
