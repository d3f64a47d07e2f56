"""From parts to a store: ids of all parts are numbered, then a range of users at a time is gathered and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.ingest.parts import Part
from mfdmc_fast.data.ingest.rows import stable_order
from mfdmc_fast.data.ratings import OnRepeat
from mfdmc_fast.data.store_files import MOST_VALUES
from mfdmc_fast.data.vocabulary import distinct_integers

if TYPE_CHECKING:
    import pyarrow as pa

BUCKET_ROWS = 1 << 21
# distinct ids that may wait to be united with those that are known
_WAITING = 1 << 21


class IdUnion:
    """The distinct ids of many parts: integers as long as all are, strings once one is."""

    def __init__(self) -> None:
        self._integers: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._strings: pa.Array | None = None
        self._waiting: list[Any] = []

    def add(self, ids: Any) -> None:
        """Ids of a part, int64 or Arrow large_string."""
        self._waiting.append(ids)
        if sum(map(len, self._waiting)) > _WAITING + len(self._integers) + len(self._strings or ()):
            self._unite()

    def result(self) -> Any:
        """[n] int64 or Arrow large_string, ascending."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self._unite()
        if self._strings is None:
            return self._integers
        texts = pa.array(self._integers).cast(pa.large_string())
        both = pa.concat_arrays([self._strings, texts]).unique()
        return both.take(pc.sort_indices(both))

    def _unite(self) -> None:
        import pyarrow as pa

        integers = [ids for ids in self._waiting if isinstance(ids, np.ndarray)]
        strings = [ids for ids in self._waiting if not isinstance(ids, np.ndarray)]
        self._waiting = []
        if integers:
            self._integers = distinct_integers(np.concatenate([self._integers, *integers]))
        if strings:
            self._strings = pa.concat_arrays([*([] if self._strings is None else [self._strings]), *strings]).unique()


def rows_of_ids(ids: Any, known: Any) -> npt.NDArray[np.int32]:
    """[k] rows of ids, each of which is among the known ones; both from `IdUnion` or a part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows: npt.NDArray[np.int32]
    if isinstance(known, np.ndarray):
        rows = np.searchsorted(known, ids).astype(np.int32)
        return rows
    texts = pa.array(ids).cast(pa.large_string()) if isinstance(ids, np.ndarray) else ids
    rows = pc.index_in(texts, value_set=known).to_numpy(zero_copy_only=False)
    return rows


def number_part(part: Part, users: Any, items: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Write the store's rows of a part's users and items beside it.

    Returns:
        [k] rows of its users, ascending, and [k] how many rows of the part each has.
    """
    user_rows = rows_of_ids(part.ids("users"), users)
    item_rows = rows_of_ids(part.ids("items"), items)
    counts = np.diff(part.read("offsets.i64"))
    columns: dict[str, npt.NDArray[Any]] = {"items.i32": item_rows[part.read("items.i32")]}
    if (np.diff(user_rows) < 0).any():  # integers that have become strings: "10" comes before "9"
        order = np.argsort(np.repeat(user_rows, counts), kind="stable")
        by_row = np.argsort(user_rows)
        user_rows, counts = user_rows[by_row], counts[by_row]
        columns = {name: column[order] for name, column in (columns | part.row_columns()).items()}
        columns["offsets.i64"] = np.concatenate([[0], np.cumsum(counts)])
    part.add_numbered({"user_rows.i32": user_rows, **columns})
    return user_rows, counts


class Repeat(NamedTuple):
    """A (user, item) pair that occurs again, as places in the sources: part, row number."""

    again: tuple[int, int]
    first: tuple[int, int]
    user_row: int
    item_row: int


@dataclass
class Bucket:
    """The ratings of a range of users in (user, item) order, no pair twice.

    Attributes:
        counts: [users of the range] ratings of each.
        items: [n] int32.
        ratings: [n] uint8 positions or float32.
        timestamps: [n] or None.
        repeated: rows that were left out.
        repeat: the earliest row that repeats a pair, where the numbers of rows are known.
        lowest, highest: ratings, rating points.
    """

    counts: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    ratings: npt.NDArray[Any]
    timestamps: npt.NDArray[Any] | None
    repeated: int
    repeat: Repeat | None
    lowest: float
    highest: float


class Gatherer:
    """Makes the buckets of a store from its numbered parts.

    Args:
        parts: in the order of the sources.
        user_counts: [n_users] rows of each user.
        n_items: items of the store.
        rating_values: distinct ratings for the positions of the store, or None for float32.
        timestamps: "i64", "f64" or None.
        on_repeat: which rating of a repeated pair counts.

    Attributes:
        n_buckets: how many there are.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        user_counts: npt.NDArray[np.int64],
        n_items: int,
        rating_values: npt.NDArray[np.float64] | None,
        timestamps: str | None,
        on_repeat: OnRepeat,
    ) -> None:
        self._parts, self._n_items, self._values = parts, n_items, rating_values
        self._times, self._on_repeat = timestamps, on_repeat
        before = np.concatenate([[0], np.cumsum(user_counts)])
        # a user with more rows than that has a bucket of her own
        bounds = [0]
        while bounds[-1] < len(user_counts):
            reached = int(np.searchsorted(before, before[bounds[-1]] + BUCKET_ROWS, side="right")) - 1
            bounds.append(max(bounds[-1] + 1, reached))
        self.n_buckets = len(bounds) - 1
        self._bounds = np.array(bounds)
        # [parts, buckets + 1]: where the users of each bucket begin in each part
        self._starts = np.array([np.searchsorted(part.numbered("user_rows.i32"), bounds) for part in parts])

    def bucket(self, number: int) -> Bucket:
        """Gather, sort and clear of repeats the ratings of the bucket's users."""
        first = int(self._bounds[number])
        pieces = [
            self._piece(index, int(start), int(stop), first)
            for index, (start, stop) in enumerate(self._starts[:, number : number + 2])
            if stop > start
        ]
        users, items, ratings, *others = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        times = others.pop(0) if self._times is not None else None
        order, new = _sorted_order(users, items, int(self._bounds[number + 1]) - first, self._n_items)
        users, items, ratings = users[order], items[order], ratings[order]
        last = np.append(new[1:], True)  # of its pair
        repeated = len(new) - int(new.sum())
        repeat = None
        if repeated and self._on_repeat == "error":
            repeat = _first_repeat(new, others[0][order], others[1][order], users + first, items)
        if repeated and self._on_repeat == "mean":
            groups = np.cumsum(new) - 1
            ratings = np.bincount(groups, weights=ratings) / np.bincount(groups)
        else:
            ratings = ratings[last]
        extremes = np.array([ratings.min(), ratings.max()])  # positions ascend as ratings do
        lowest, highest = (extremes if self._values is None else self._values[extremes]).tolist()
        return Bucket(
            np.bincount(users[last], minlength=int(self._bounds[number + 1]) - first),
            items[last],
            ratings.astype(np.float32 if self._values is None else np.uint8, copy=False),
            None if times is None else times[order][last],
            repeated,
            repeat,
            lowest,
            highest,
        )

    def _piece(self, index: int, start: int, stop: int, first: int) -> list[npt.NDArray[Any]]:
        """Columns of the rows of a part's users [start, stop): users from row `first` on, items, ratings, the rest."""
        part = self._parts[index]
        rows = part.numbered("user_rows.i32", start, stop - start)
        offsets = part.numbered("offsets.i64", start, stop - start + 1)
        span = int(offsets[0]), int(offsets[-1] - offsets[0])
        columns = [np.repeat(rows - first, np.diff(offsets)), part.numbered("items.i32", *span)]
        columns.append(self._ratings(part, *span))
        if self._times is not None:
            kind = np.int64 if self._times == "i64" else np.float64
            columns.append(part.numbered(f"timestamps.{part.timestamps}", *span).astype(kind, copy=False))
        if self._on_repeat == "error":
            columns += [np.full(span[1], index), part.numbered("numbers.i64", *span)]
        return columns

    def _ratings(self, part: Part, start: int, count: int) -> npt.NDArray[Any]:
        """Positions among the store's distinct ratings, or float64."""
        if not part.coded:
            return part.numbered("ratings.f64", start, count)
        values = part.read("values.f64")
        table = values if self._values is None else np.searchsorted(self._values, values).astype(np.uint8)
        ratings: npt.NDArray[Any] = table[part.numbered("ratings.u8", start, count)]
        return ratings


def plain_id(ids: Any, row: int) -> int | str:
    """The raw id of a row."""
    found: int | str = ids[row].item() if isinstance(ids, np.ndarray) else ids[row].as_py()
    return found


def rating_values_of(parts: Sequence[Part]) -> npt.NDArray[np.float64] | None:
    """The distinct ratings of all parts, ascending, or None where there are more than a byte can number."""
    found = np.empty(0)
    for part in parts:
        if not part.coded:
            return None
        found = np.union1d(found, part.read("values.f64"))
    return found if len(found) <= MOST_VALUES else None


def _sorted_order(
    users: npt.NDArray[np.int32], items: npt.NDArray[np.int32], n_users: int, n_items: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The stable order [n] by user and item, and in it the first row of each pair."""
    by_item, _ = stable_order(items, n_items)
    order = by_item[stable_order(users[by_item], n_users)[0]]
    return order, (np.diff(users[order], prepend=-1) != 0) | (np.diff(items[order], prepend=-1) != 0)


def _first_repeat(
    new: npt.NDArray[np.bool_],
    parts: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
) -> Repeat:
    """The earliest row, in the order of the sources, whose pair has come before; columns are in the order of pairs."""
    again = np.flatnonzero(~new)
    at = int(again[np.lexsort((numbers[again], parts[again]))[0]])
    before = int(np.flatnonzero(new[:at])[-1])
    return Repeat(
        (int(parts[at]), int(numbers[at])), (int(parts[before]), int(numbers[before])), int(users[at]), int(items[at])
    )
