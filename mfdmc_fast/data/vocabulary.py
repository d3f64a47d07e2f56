"""Raw user and item ids: which values they are, and their mapping to the row indices of a model.

Ids are int64 when every id of a column, as text, is how an integer in the range of int64 is written ("7", "-3"; not
"007", "+7" or "7.0"); otherwise every id of the column is a string. Floats of integral value count as integers, because
columns with a missing value are often stored as floats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mfdmc_fast.data.blocks import blocks
from mfdmc_fast.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_INT64 = np.iinfo(np.int64)


class Vocabulary:
    """Distinct raw ids, all integers or all strings, numbered 0..n-1 in the order given.

    Args:
        ids: [n] distinct ids: integers in the range of int64, or str.

    Raises:
        DataError: ids of another type, of mixed types, or repeated ids.
    """

    def __init__(self, ids: Any) -> None:
        self._ids = _as_ids(ids).copy()
        if self.kind == "int":
            self._first, self._table = _row_table(self._ids)
            # The ids need not be sorted: searching goes through this permutation.
            self._order = np.argsort(self._ids, kind="stable")
            self._sorted = self._ids[self._order]
            repeated = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
            if len(repeated):
                raise DataError(f"id {int(repeated[0])} occurs more than once in the vocabulary")
        else:
            # A hash table: a binary search in strings is several times slower.
            self._index = {text: row for row, text in enumerate(self._ids.tolist())}
            if len(self._index) != len(self._ids):
                repeated_id = next(text for row, text in enumerate(self._ids) if self._index[text] != row)
                raise DataError(f"id {repeated_id!r} occurs more than once in the vocabulary")

    @classmethod
    def from_values(cls, values: Any) -> Vocabulary:
        """The vocabulary of the distinct values [N], in ascending order (strings by code point)."""
        array = _as_array(values)
        if array.dtype.kind in "iu":
            return cls(distinct_integers(_as_ids(array)))
        distinct: set[Any] = set()
        for block in blocks(len(array)):
            distinct.update(_as_ids(array[block]).tolist())
        return cls(np.sort(_as_ids(distinct)))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """[n] int64 or object (str): the raw id of every row index."""
        return self._ids

    @property
    def kind(self) -> Literal["int", "str"]:
        """The type of the ids; an empty vocabulary of unknown type counts as "str"."""
        return "int" if self._ids.dtype == np.int64 else "str"

    def encode(self, values: Any) -> np.ndarray:
        """Row indices of raw ids, -1 for an id that is not in the vocabulary.

        An integer, a float of integral value and the canonical decimal text of an integer ("12", not "012", "+12" or
        "12.0") name the same id, whichever of them the vocabulary holds. Everything else (None, NaN, booleans, bytes,
        numbers beyond int64) is unknown.

        Args:
            values: N ids: an array, a list or a single id.

        Returns:
            [N] int64; [1] for a single id.
        """
        array = _as_array(values)
        if self.kind == "int":
            return self._search(*_to_integers(array))
        index = self._index
        return np.fromiter((index.get(_to_text(value), -1) for value in array.tolist()), np.int64, len(array))

    def decode(self, rows: Any) -> np.ndarray:
        """Raw ids [N] of row indices [N]; DataError for an index outside 0..n-1, such as the -1 of an unknown id."""
        index = np.asarray(rows, dtype=np.int64)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise DataError(f"row index {int(index[outside][0])} is outside the vocabulary of {len(self)} ids")
        return self._ids[index]

    def _search(self, wanted: np.ndarray, valid: np.ndarray) -> np.ndarray:
        if not len(self):
            return np.full(len(wanted), -1, dtype=np.int64)
        if self._table is not None:
            last = self._first + len(self._table) - 1
            inside = valid & (wanted >= self._first) & (wanted <= last)  # a difference could overflow
            return np.where(inside, self._table[np.where(inside, wanted - self._first, 0)], np.int64(-1))
        position = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        found = valid & (self._sorted[position] == wanted)
        return np.where(found, self._order[position], np.int64(-1))


def _row_table(ids: np.ndarray) -> tuple[int, np.ndarray | None]:
    """The smallest id and, where the ids are dense enough, the row of every number from there on, -1 for no id."""
    if not len(ids):
        return 0, None
    first, span = int(ids.min()), int(ids.max()) - int(ids.min()) + 1
    if span > 4 * len(ids) + 1024:
        return first, None
    table = np.full(span, -1, dtype=np.int64)
    table[ids - first] = np.arange(len(ids))
    return first, table


def distinct_integers(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values [n] of int64 [N]; by marking instead of sorting where their range allows."""
    if len(values) and int(values.max()) - int(values.min()) < 4 * len(values) + 1024:
        lowest = values.min()
        marks = np.zeros(int(values.max()) - int(lowest) + 1, dtype=bool)
        for block in blocks(len(values)):
            marks[values[block] - lowest] = True
        distinct: np.ndarray = np.flatnonzero(marks) + lowest
        return distinct
    return np.unique(values)


def _object_array(values: list[Any]) -> np.ndarray:
    # np.array(values, dtype=object) would turn a list of equally long lists into two dimensions.
    return np.fromiter(values, dtype=object, count=len(values))


def _as_array(values: Any) -> np.ndarray:
    """Values as a one-dimensional array; lists keep their Python types, which np.asarray would blend into text."""
    if hasattr(values, "__array__"):
        return np.asarray(values).reshape(-1)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return _object_array([values])
    return _object_array(list(values))


def _as_ids(values: Any) -> np.ndarray:
    array = _as_array(values)
    if array.dtype.kind in "iu":
        if len(array) and int(array.max()) > _INT64.max:
            raise DataError(f"id {int(array.max())} is beyond the range of int64; use strings")
        return array.astype(np.int64, copy=False)
    listed = array.tolist()
    if all(isinstance(value, str) for value in listed):
        return _object_array([str(value) for value in listed])
    if all(_is_int(value) and _INT64.min <= value <= _INT64.max for value in listed):
        return np.array(listed, dtype=np.int64)
    raise DataError("ids must be all integers (in the range of int64) or all strings")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _to_integers(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer ids [N] int64 and a mask [N] of the values that are one; the others are 0."""
    if array.dtype.kind == "i":
        return array.astype(np.int64), np.ones(len(array), dtype=bool)
    if array.dtype.kind == "f":
        # 2.0**63 itself is beyond int64, -2.0**63 is not.
        valid = (array >= -(2.0**63)) & (array < 2.0**63) & (array == np.floor(array))
        return np.where(valid, array, 0).astype(np.int64), valid
    parsed = [_to_integer(value) for value in array.tolist()]
    valid = np.array([number is not None for number in parsed], dtype=bool)
    return np.array([number or 0 for number in parsed], dtype=np.int64), valid


def _to_integer(value: Any) -> int | None:
    """The int64 that a single id names, or None."""
    is_integer = (
        _is_int(value)
        or (isinstance(value, float | np.floating) and float(value).is_integer())
        or (isinstance(value, str) and _is_canonical(value))
    )
    number = int(value) if is_integer else _INT64.max + 1
    return number if _INT64.min <= number <= _INT64.max else None


def _is_canonical(text: str) -> bool:
    """Whether text is how an integer of at most 20 characters, the longest of int64, is written in decimal."""
    return len(text) <= 20 and text.removeprefix("-").isdecimal() and str(int(text)) == text


def _to_text(value: Any) -> str | None:
    """The string id that a single value names, or None."""
    if isinstance(value, str):
        return value
    number = _to_integer(value)
    return None if number is None else str(number)


def ids_to_arrays(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Raw ids in row order as numbers: `ids` int64 [n], or strings as `utf8` uint8 and `offsets` int64 [n + 1]."""
    if vocabulary.kind == "int":
        return {"ids": np.ascontiguousarray(vocabulary.ids, dtype=np.int64)}
    encoded = [str(value).encode("utf-8", "surrogatepass") for value in vocabulary.ids]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {"utf8": np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8), "offsets": offsets}


def ids_from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Vocabulary:
    """Inverse of `ids_to_arrays` for arrays whose keys are `name`, a dot and what they are called there.

    Raises:
        KeyError, ValueError, IndexError: arrays that `ids_to_arrays` does not make.
    """
    if f"{name}.ids" in arrays:
        ids = arrays[f"{name}.ids"]
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ValueError(f"{name}.ids must be a vector of int64")
        return Vocabulary(ids)
    utf8, offsets = arrays[f"{name}.utf8"], arrays[f"{name}.offsets"]
    if utf8.dtype != np.uint8 or offsets.dtype != np.int64 or utf8.ndim != 1 or offsets.ndim != 1:
        raise ValueError(f"{name}.utf8 and {name}.offsets must be vectors of uint8 and int64")
    data = utf8.tobytes()
    if offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{name}.offsets do not fit {name}.utf8")
    return Vocabulary(
        _object_array([data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(offsets.tolist())])
    )


def plain_ids(column: pa.ChunkedArray, source: str, label: str) -> pa.ChunkedArray:
    """A column of ids as int64 or large_string, null where an id is missing, empty or a fractional number.

    Args:
        column: [n] large_string, integer or floating; other types are no ids.
        source: path or description of the source, for messages.
        label: name of the column, for messages.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_large_string(kind):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # uint64 beyond int64
            return column.cast(pa.large_string())
    if pa.types.is_floating(kind):
        values = column.to_numpy()
        # From 2**53 on, a float may stand for several integers.
        exact = (np.abs(values) < 2.0**53) & (values == np.floor(values))
        return pa.chunked_array([pa.array(np.where(exact, values, 0).astype(np.int64), mask=~exact)])
    raise DataError(f"ids of type {kind} are not read; use integers or strings", source=source, column=label)


def id_array(column: pa.ChunkedArray) -> np.ndarray:
    """The ids of a column without nulls, int64 or large_string, as int64 or an object array of str."""
    # Through a dictionary: few distinct strings to inspect and to make Python objects of.
    encoded = column.combine_chunks().dictionary_encode()
    distinct = encoded.dictionary
    ids: np.ndarray = integers_if_canonical(distinct).to_numpy(zero_copy_only=False)[encoded.indices.to_numpy()]
    return ids


def integers_if_canonical(distinct: pa.Array) -> pa.Array:
    """Ids as int64 where all are integers or are how integers are written, else as they are."""
    import pyarrow as pa

    if not pa.types.is_integer(distinct.type):
        with contextlib.suppress(pa.ArrowInvalid):
            integers = distinct.cast(pa.int64())
            # Arrow also parses "007" and "0x1F": only what prints back as the same text is an integer here.
            distinct = integers if integers.cast(distinct.type).equals(distinct) else distinct
    return distinct
