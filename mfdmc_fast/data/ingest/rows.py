"""Rows of a chunk with their ids numbered within the chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.columns import Screened, timestamp_array
from mfdmc_fast.data.vocabulary import integers_if_canonical

if TYPE_CHECKING:
    import pyarrow as pa


class Coded(NamedTuple):
    """A column of n values as positions among its distinct ones.

    Attributes:
        distinct: [k] ascending: int64, Arrow large_string, or float64.
        codes: [n] int32.
    """

    distinct: Any
    codes: npt.NDArray[np.int32]


@dataclass
class Rows:
    """The n good rows of a chunk.

    Attributes:
        users, items: raw ids, int64 or Arrow large_string.
        ratings: float64 values.
        timestamps: [n] int64 or float64, None where some are no numbers.
        row_numbers: [n] int64 within the file, from 1.
        rows, bad: data rows, and how many of them were bad.
        lines: lines of the file that the chunk has.
        encoding: of text: "ascii", "utf-8" or "latin-1".
    """

    users: Coded
    items: Coded
    ratings: Coded
    timestamps: npt.NDArray[Any] | None
    row_numbers: npt.NDArray[np.int64]
    rows: int
    bad: int
    lines: int
    encoding: str = "ascii"


def rows_of(screen: Screened, lines: int) -> Rows:
    """The good rows of a table, numbered."""
    import pyarrow as pa

    return Rows(
        coded_ids(screen.user_ids),
        coded_ids(screen.item_ids),
        coded_numbers(pa.array(screen.ratings).dictionary_encode()),
        None if screen.timestamps is None else timestamp_array(screen.timestamps),
        screen.row_numbers,
        screen.report.rows,
        screen.report.bad_rows_skipped,
        lines,
    )


def coded_ids(ids: pa.ChunkedArray) -> Coded:
    """Ids [n], int64, large_string or a dictionary of these, by the rule for ids of `mfdmc_fast.data.vocabulary`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(ids.type):
        values = ids.to_numpy()
        if len(values) and int(values.max()) - int(values.min()) < 4 * len(values) + 1024:
            return _coded_by_marking(values)
    array = ids.combine_chunks() if pa.types.is_dictionary(ids.type) else ids.combine_chunks().dictionary_encode()
    distinct, codes = integers_if_canonical(array.dictionary), array.indices.to_numpy()
    if pa.types.is_integer(distinct.type):
        numbers = distinct.to_numpy()
        order = np.argsort(numbers)
        return Coded(numbers[order], _inverse(order)[codes])
    order = pc.sort_indices(distinct).to_numpy()  # by bytes, which for UTF-8 is by code point
    return Coded(distinct.take(pa.array(order)).cast(pa.large_string()), _inverse(order)[codes])


def coded_numbers(encoded: pa.DictionaryArray) -> Coded:
    """A dictionary of float64."""
    distinct, position = np.unique(encoded.dictionary.to_numpy(), return_inverse=True)
    return Coded(distinct, position.astype(np.int32)[encoded.indices.to_numpy()])


def stable_order(codes: npt.NDArray[np.int32], n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """Stable argsort [N] of numbers 0 … n - 1 by counting, and [n + 1] where each number begins in it."""
    from scipy.sparse import csr_array

    rows = csr_array((np.empty(len(codes), np.int8), codes, np.arange(len(codes) + 1)), shape=(len(codes), n))
    columns = rows.tocsc()  # which moves the entries of a column together, as they come
    return columns.indices, columns.indptr


def _coded_by_marking(values: npt.NDArray[np.int64]) -> Coded:
    """Integers of a narrow range: a table instead of a hash."""
    lowest = int(values.min())
    offsets = values - lowest
    marks = np.zeros(int(offsets.max()) + 1, dtype=bool)
    marks[offsets] = True
    return Coded(np.flatnonzero(marks) + lowest, (np.cumsum(marks, dtype=np.int32) - 1)[offsets])


def _inverse(order: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    inverse = np.empty(len(order), dtype=np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse
