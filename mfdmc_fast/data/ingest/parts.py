"""Parts: the rows of a chunk on disk, sorted by user, from which any range of users can be read by itself.

A part is a folder that gets its name when it is complete:

| file | content |
|---|---|
| `users.*`, `items.*` | distinct raw ids of the part, ascending, as in a store |
| `offsets.i64` | [users + 1] rows of each user |
| `items.i32` | [n] positions among the part's items |
| `ratings.u8`, `values.f64` or `ratings.f64` | [n] positions among the part's distinct ratings and these, or ratings |
| `timestamps.i64` or `.f64`, `numbers.i64` | [n] where they are wanted |
| `part.json` | counts |

When all ids are known, a folder `numbered` gets `user_rows.i32`, the store's rows of the part's users, `items.i32` as
rows of the store, and other columns where their order changes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.ingest.rows import Rows, stable_order
from mfdmc_fast.data.store_files import MOST_VALUES, dtype_of, read_column

if TYPE_CHECKING:
    import pyarrow as pa

_SUMMARY = "part.json"
_NUMBERED = "numbered"


@dataclass(frozen=True)
class Part:
    """A complete part.

    Attributes:
        folder: where it is.
        rows, bad, lines, encoding: as in `Rows`.
        good: rows that are there.
        users, items: kinds of ids, "int" or "str".
        coded: whether it has positions among at most 256 distinct ratings.
        lowest, highest: ratings.
        timestamps: "i64", "f64" or None.
    """

    folder: Path
    rows: int
    bad: int
    lines: int
    encoding: str
    good: int
    users: str
    items: str
    coded: bool
    lowest: float
    highest: float
    timestamps: str | None

    def read(self, name: str, start: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """A column, or some of it."""
        return read_column(self.folder / name, start, count)

    def numbered(self, name: str, start: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """A column as it is since the part was numbered, or some of it."""
        changed = self.folder / _NUMBERED / name
        return read_column(changed if changed.exists() else self.folder / name, start, count)

    def row_columns(self) -> dict[str, npt.NDArray[Any]]:
        """Every column of rows but the items."""
        stems = ("ratings.", "timestamps.", "numbers.")
        return {path.name: self.read(path.name) for path in self.folder.iterdir() if path.name.startswith(stems)}

    def add_numbered(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write columns of the numbered part; what an earlier run has left of them goes."""
        shutil.rmtree(self.folder / _NUMBERED, ignore_errors=True)
        _write_columns(self.folder / _NUMBERED, columns)

    def ids(self, side: str) -> Any:
        """Distinct raw ids, int64 or Arrow large_string."""
        import pyarrow as pa

        if getattr(self, side) == "int":
            return self.read(f"{side}.ids.i64")
        offsets, data = self.read(f"{side}.offsets.i64"), self.read(f"{side}.utf8.u8")
        return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def write_part(folder: Path, rows: Rows, numbers: bool) -> Part:
    """Write the rows of a chunk; `numbers`: also the numbers of rows, which repeated pairs are reported by."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    n = len(rows.users.codes)
    order, offsets = stable_order(rows.users.codes, len(rows.users.distinct))
    columns: dict[str, npt.NDArray[Any]] = {
        **id_columns("users", rows.users.distinct),
        **id_columns("items", rows.items.distinct),
        "offsets.i64": offsets,
        "items.i32": rows.items.codes[order],
    }
    values, codes = rows.ratings
    coded = len(values) <= MOST_VALUES
    if coded:
        columns |= {"values.f64": values, "ratings.u8": codes.astype(np.uint8)[order]}
    else:
        columns["ratings.f64"] = values[codes][order]
    times = None
    if rows.timestamps is not None:
        times = "i64" if rows.timestamps.dtype == np.int64 else "f64"
        columns[f"timestamps.{times}"] = rows.timestamps[order]
    if numbers:
        columns["numbers.i64"] = rows.row_numbers[order]
    _write_columns(temporary, columns)
    part = Part(
        folder,
        rows.rows,
        rows.bad,
        rows.lines,
        rows.encoding,
        n,
        kind_of(rows.users.distinct),
        kind_of(rows.items.distinct),
        coded,
        float(values[0]) if n else 0.0,
        float(values[-1]) if n else 0.0,
        times,
    )
    (temporary / _SUMMARY).write_text(json.dumps({**asdict(part), "folder": None}))
    os.rename(temporary, folder)
    return part


def finished_part(folder: Path) -> Part | None:
    """A part that an earlier run completed."""
    if not folder.is_dir():
        return None
    return Part(**{**json.loads((folder / _SUMMARY).read_text()), "folder": folder})


def _write_columns(folder: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    folder.mkdir()
    for name, column in columns.items():
        np.ascontiguousarray(column, dtype=dtype_of(name)).tofile(folder / name)


def id_columns(side: str, ids: pa.Array | npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Files and columns of raw ids, int64 or Arrow large_string, as stores have them."""
    if isinstance(ids, np.ndarray):
        return {f"{side}.ids.i64": ids}
    _, offsets, data = ids.buffers()
    bounds = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
    return {f"{side}.offsets.i64": bounds - bounds[0], f"{side}.utf8.u8": text}


def kind_of(ids: Any) -> str:
    """ "int" or "str"."""
    return "int" if isinstance(ids, np.ndarray) else "str"
