"""The files of a store: how they are named, written, checked and read piece by piece.

A store is a folder of plain little-endian columns, which anything can map into memory, and a manifest:

| file | content |
|---|---|
| `manifest.json` | format version, counts, distinct ratings, scale, report, sources; size and checksum of each file |
| `users.ids.i64` or `users.utf8.u8`, `users.offsets.i64` | raw ids of the rows, ascending; the same for `items` |
| `user_offsets.i64` | [n_users + 1] user u has the ratings offsets[u] : offsets[u + 1] |
| `item_counts.i64` | [n_items] ratings of each item |
| `items.i32` | [N] item rows in (user, item) order, no pair twice |
| `ratings.u8` or `ratings.f32` | [N] positions among the distinct ratings, or, where there are more than 256, ratings |
| `timestamps.i64` or `timestamps.f64` | [N] where the sources have them |

File names follow from the manifest's fields and are never read from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.ratings import ReadReport
from mfdmc_fast.errors import DataError
from mfdmc_fast.files import flush_folder

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MOST_VALUES = 256  # distinct ratings that a byte can number
_FORMAT = "mfdmc_fast ratings"
_PIECE_BYTES = 1 << 20
_ENDS: dict[str, np.dtype[Any]] = {
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "u8": np.dtype("u1"),
    "f32": np.dtype("<f4"),
    "f64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class FileEntry:
    """Size and BLAKE2b checksum (32 bytes, hexadecimal) of a file."""

    bytes: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        ratings, users, items: counts.
        user_ids, item_ids: "int" or "str".
        rating_values: distinct ratings, ascending, for `ratings.u8`; None for `ratings.f32`.
        rating_scale: lowest and highest rating.
        timestamps: "i64", "f64" or None.
        report: what reading the sources dropped.
        sources: path, bytes and time of change of each source.
        files: entry of every file but the manifest.
    """

    ratings: int
    users: int
    items: int
    user_ids: str
    item_ids: str
    rating_values: list[float] | None
    rating_scale: tuple[float, float]
    timestamps: str | None
    report: ReadReport
    sources: list[dict[str, Any]]
    files: dict[str, FileEntry]

    def __post_init__(self) -> None:
        counts = {"ratings": self.ratings, "users": self.users, "items": self.items}
        for name, count in counts.items():
            if type(count) is not int or not 1 <= count < 2**62:
                raise ValueError(f"{name} {count!r}")
        for kind in (self.user_ids, self.item_ids):
            if kind not in ("int", "str"):
                raise ValueError(f"ids of kind {kind!r}")
        values = self.rating_values
        if values is not None and not (1 <= len(values) <= MOST_VALUES and all(a < b for a, b in pairwise(values))):
            raise ValueError("rating_values must be 1 to 256 ascending numbers")
        if not all(math.isfinite(x) for x in (*(values or ()), *self.rating_scale)):
            raise ValueError("ratings must be finite")
        if self.timestamps not in (None, "i64", "f64"):
            raise ValueError(f"timestamps {self.timestamps!r}")
        for name, length in self.expected().items():
            size = self.files[name].bytes
            width = dtype_of(name).itemsize
            if type(size) is not int or size < 0 or size % width or (length is not None and size != length * width):
                raise ValueError(f"{name} cannot have {size!r} bytes")

    @property
    def rating_file(self) -> str:
        """Name of the file of ratings."""
        return "ratings.f32" if self.rating_values is None else "ratings.u8"

    def expected(self) -> dict[str, int | None]:
        """Names of the files that there must be, and their lengths; None where any will do."""
        names: dict[str, int | None] = {
            "user_offsets.i64": self.users + 1,
            "item_counts.i64": self.items,
            "items.i32": self.ratings,
            self.rating_file: self.ratings,
        }
        for side, kind, count in (("users", self.user_ids, self.users), ("items", self.item_ids, self.items)):
            names |= (
                {f"{side}.ids.i64": count}
                if kind == "int"
                else {f"{side}.utf8.u8": None, f"{side}.offsets.i64": count + 1}
            )
        return names if self.timestamps is None else names | {f"timestamps.{self.timestamps}": self.ratings}

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(
            {"format": _FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}, indent=1, allow_nan=False
        )


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a store.

    Raises:
        DataError: no store, of a newer format, or its parts contradict each other or the sizes of the files.
    """
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        if values["format"] != _FORMAT:
            raise KeyError
        version = values["format_version"]
    except OSError as error:
        reason = f"is a folder, but not a store that mfdmc prepare wrote: it has no {MANIFEST}"
        if not isinstance(error, FileNotFoundError):
            reason = f"cannot be read ({error.strerror})"
        raise DataError(reason, source=str(folder)) from error
    except (KeyError, TypeError, ValueError):
        raise DataError("is not the manifest of a store, or damaged", source=str(folder / MANIFEST)) from None
    if type(version) is int and version > FORMAT_VERSION:
        raise DataError(
            f"the store has format version {version}, this package reads up to {FORMAT_VERSION}; upgrade with pip"
            " install -U mfdmc_fast",
            source=str(folder),
        )
    try:
        manifest = _manifest_from(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"damaged or inconsistent manifest ({said})", source=str(folder / MANIFEST)) from error
    for name in manifest.expected():
        try:
            size = os.stat(folder / name).st_size
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", source=str(folder / name)) from error
        if size != manifest.files[name].bytes:
            raise DataError(
                f"truncated or damaged: {size} bytes instead of {manifest.files[name].bytes}; prepare the store again",
                source=str(folder / name),
            )
    return manifest


def _manifest_from(values: Mapping[str, Any]) -> Manifest:
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version {values['format_version']!r}")
    fields = {name: values[name] for name in Manifest.__dataclass_fields__}
    if not isinstance(fields["rating_values"], list | None):
        raise ValueError("rating_values must be a list")
    low, high = (float(x) for x in fields["rating_scale"])
    fields |= {
        "rating_scale": (low, high),
        "rating_values": None if fields["rating_values"] is None else [float(x) for x in fields["rating_values"]],
        "report": ReadReport(**fields["report"]),
        "files": {str(name): FileEntry(e["bytes"], e["checksum"]) for name, e in fields["files"].items()},
    }
    return Manifest(**fields)


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype that the end of a file's name tells."""
    return _ENDS[name.rpartition(".")[2]]


def read_column(path: Path, start: int = 0, count: int = -1) -> npt.NDArray[Any]:
    """Numbers [start, start + count) of a column, -1: to its end; DataError where they are not all there."""
    dtype = dtype_of(path.name)
    try:
        values = np.fromfile(path, dtype, count, offset=start * dtype.itemsize)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", source=str(path)) from error
    if count >= 0 and len(values) != count:
        raise DataError("truncated while it was read; prepare the store again", source=str(path))
    return values


def read_checked(path: Path, entry: FileEntry) -> npt.NDArray[Any]:
    """A whole column whose checksum is right; DataError where it is not."""
    values = read_column(path, 0, entry.bytes // dtype_of(path.name).itemsize)
    data: Any = values
    _compare(path, hashlib.blake2b(data, digest_size=32).hexdigest(), entry)
    return values


def check_file(path: Path, entry: FileEntry) -> None:
    """Read a file once and compare its checksum; DataError where it differs."""
    found = hashlib.blake2b(digest_size=32)
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                found.update(piece)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", source=str(path)) from error
    _compare(path, found.hexdigest(), entry)


def _compare(path: Path, checksum: str, entry: FileEntry) -> None:
    if checksum != entry.checksum:
        raise DataError("damaged: its checksum is wrong; prepare the store again", source=str(path))


class ColumnWriter:
    """Appends to the files of a store that is being made, and knows their sizes and checksums."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._digests: dict[str, Any] = {}

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        """Numbers at the end of a file; its name tells their dtype."""
        if name not in self._files:
            self._files[name] = open(self._folder / name, "wb", buffering=0)  # noqa: SIM115 - closed by `finish`, `close`
            self._digests[name] = hashlib.blake2b(digest_size=32)
        column: Any = np.ascontiguousarray(values, dtype=dtype_of(name))
        data = memoryview(column).cast("B")
        self._digests[name].update(data)
        while data:
            data = data[self._files[name].write(data) :]

    def finish(self) -> dict[str, FileEntry]:
        """Flush all to disk and say what there is."""
        entries = {}
        for name, file in self._files.items():
            os.fsync(file.fileno())
            entries[name] = FileEntry(file.tell(), self._digests[name].hexdigest())
        self.close()
        return entries

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


@contextmanager
def new_store(out: Path, temporary: Path) -> Iterator[ColumnWriter]:
    """Yields the writer of a store in the folder `temporary`; the body writes all columns and then `finish_store`.

    On success the folder becomes `out`, else it is removed. Both must be on one file system.
    """
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    writer = ColumnWriter(temporary)
    try:
        yield writer
        flush_folder(temporary)
        os.rename(temporary, out)  # takes the place of an empty folder at most
        flush_folder(out.parent)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", source=str(out)) from error
    finally:
        writer.close()
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a store: without it a folder is none."""
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(manifest.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())
