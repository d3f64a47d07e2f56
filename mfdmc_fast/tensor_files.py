"""Safetensors files with JSON in their metadata, written whole or not at all; optionally sealed by a checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mfdmc_fast.errors import DataError, ModelFileError
from mfdmc_fast.files import replacing

_MOST_TENSORS = 1000  # every one takes a search in the header
_CHUNK_BYTES = 1 << 20
_SEAL = "checksum"
_DIGEST_BYTES = 32
# until the checksum is known, which is that of the file with these digits in its place
_NO_CHECKSUM = b"0" * (2 * _DIGEST_BYTES)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, sealed: bool = False
) -> None:
    """Write tensors under a temporary name and rename it; an existing file is replaced only on success.

    Args:
        path: the file.
        tensors: contiguous, of any shape and dtype, no two of them on the same storage.
        metadata: texts.
        sealed: add a checksum over every byte of the file, which `read_tensors` can ask for.

    Raises:
        DataError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seal = {_SEAL: _NO_CHECKSUM.decode()} if sealed else {}
    try:
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata={**metadata, **seal})
            if sealed:
                position, _, checksum = _checksums(temporary)
                with open(temporary, "rb+") as file:
                    file.seek(position)
                    file.write(checksum)
    except SafetensorError as error:  # such as a full disk
        raise DataError(f"cannot be written: {error}", source=str(path)) from error


def read_tensors(path: str | os.PathLike[str], *, sealed: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file.

    Args:
        path: the file.
        sealed: it must have a checksum, which must be right: a file with a single changed bit is refused.

    Raises:
        ModelFileError: missing, truncated, a pickle, not safetensors, or with a wrong checksum; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as opened:
            start = opened.read(2)
        if sealed:
            _, stored, computed = _checksums(Path(path))
            if stored != computed:
                raise ModelFileError(f"{path}: damaged: its checksum does not fit its content")
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise ModelFileError(f"{path}: damaged: it has {len(names):,} tensors, files of this package a few")
            # clone: the tensors would stay views of the file, which may be overwritten while they are in use
            return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in names}
    except ModelFileError:
        raise
    # not only SafetensorError: a shape such as [0, 2**63] is found by torch
    except (SafetensorError, ValueError, TypeError, RuntimeError, OSError) as error:
        # only now: the length that a safetensors file starts with may look like these marks
        if start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise ModelFileError(
                f"{path}: is a pickle or zip archive, which is never loaded because it can run code;"
                " models of mfdmc_fast are safetensors files written by save()"
            ) from None
        raise ModelFileError(f"{path}: truncated or not a safetensors file ({error})") from error


def _checksums(path: Path) -> tuple[int, bytes, bytes]:
    """Where the checksum stands in a sealed file, its hexadecimal digits there, and those that its content asks for."""
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = file.read(8)
        # a damaged length may be anything
        header = file.read(min(int.from_bytes(length, "little"), size))
        # quotes inside the texts of the metadata are escaped, so this is the key itself
        mark = f'"{_SEAL}":"'.encode()
        start = header.find(mark) + len(mark)
        stored = header[start : start + len(_NO_CHECKSUM)]
        if start < len(mark) or len(stored) < len(_NO_CHECKSUM):
            raise ModelFileError(f"{path}: truncated or damaged: it has no checksum")
        found.update(length + header[:start] + _NO_CHECKSUM + header[start + len(stored) :])
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return len(length) + start, stored, found.hexdigest().encode()
