"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfdmc_fast.errors import DataError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, else removed.

    Raises:
        DataError: the folder does not exist or cannot be written.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))  # a link keeps pointing where it does
    temporary = None
    try:
        # cut, so that a name of the greatest length has room for the ends: 50 characters are at most 200 bytes
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; a result gets the permissions that any new file would
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        flush_folder(target.parent)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", source=str(path)) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same folder out of it, for results of several files that belong together.

    Raises:
        DataError: another process is in it, or it cannot be opened.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", source=str(folder)) from error
    try:
        with suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    "another process is writing to this folder; wait for its end", source=str(folder)
                ) from None
        yield
    finally:
        os.close(handle)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `DataError` unless a file of this path can be created or replaced; worth asking before hours of work."""
    target = Path(path)
    if target.is_dir():
        raise DataError("is a folder; give the name of a file", source=str(target))
    if target.exists() and not target.is_file():  # replacing a device or a pipe would destroy it
        raise DataError("is not a regular file; give the name of a file", source=str(target))
    if not target.parent.is_dir():
        raise DataError(f"the folder {target.parent} does not exist; create it first", source=str(target))
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"the folder {target.parent} cannot be written; choose another", source=str(target))


def flush_folder(folder: Path) -> None:
    """Let a power failure not undo a renaming, as far as the file system can."""
    with suppress(OSError):  # some file systems cannot flush folders; the file itself is complete
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
