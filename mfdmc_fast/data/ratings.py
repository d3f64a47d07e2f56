"""Explicit ratings in memory, and what happens to repeated pairs and ratings outside the scale."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from mfdmc_fast.errors import ConfigError, DataError

OnBadRow = Literal["error", "skip"]
OnRepeat = Literal["last", "mean", "error"]

_DTYPES: dict[str, tuple[type[np.generic], ...]] = {
    "users": (np.int64, np.object_),
    "items": (np.int64, np.object_),
    "ratings": (np.float64,),
    "timestamps": (np.int64, np.float64),
}


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a source.

    Attributes:
        rows: data rows in the source, bad and repeated ones included; a header and blank lines do not count.
        bad_rows_skipped: rows dropped under `on_bad_row="skip"`.
        repeated_pairs: rows removed because their (user, item) pair occurred more than once.
        on_bad_row, on_repeat: the policies that were asked for.
    """

    rows: int = 0
    bad_rows_skipped: int = 0
    repeated_pairs: int = 0
    on_bad_row: OnBadRow = "error"
    on_repeat: OnRepeat = "last"

    def __post_init__(self) -> None:
        for name, policy in (("on_bad_row", OnBadRow), ("on_repeat", OnRepeat)):
            value, allowed = getattr(self, name), get_args(policy)
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Ratings:
    """N ratings as parallel arrays, in the order of their source.

    Attributes:
        users: [N] raw user ids, int64 or an object array of str.
        items: [N] raw item ids, int64 or an object array of str.
        ratings: [N] float64, finite, in the units of the source.
        timestamps: [N] int64 or float64 in the units of the source (seconds for date columns), or None.
        columns: further columns that were kept, such as a fold number; name -> array [N].
        source: path or description of the source, for messages.
        report: what reading the source dropped.
        distinct: known to have no (user, item) pair twice, so that nobody needs to look again.

    Raises:
        DataError: an array has the wrong shape or dtype, lengths differ, or a rating is not finite.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = "ratings"
    report: ReadReport = field(default_factory=ReadReport)
    distinct: bool = False

    def __post_init__(self) -> None:
        arrays = {"users": self.users, "items": self.items, "ratings": self.ratings}
        if self.timestamps is not None:
            arrays["timestamps"] = self.timestamps
        arrays |= {f"column {name!r}": values for name, values in self.columns.items()}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.ndim != 1:
                raise DataError(f"{name} must be a one-dimensional numpy array", source=self.source)
            if len(array) != len(self.users):
                raise DataError(f"{len(self.users)} users but {len(array)} {name}", source=self.source)
            if array.dtype not in _DTYPES.get(name, (array.dtype,)):
                expected = " or ".join(np.dtype(kind).name for kind in _DTYPES[name])
                raise DataError(f"{name} must have dtype {expected}, not {array.dtype}", source=self.source)
        finite = np.isfinite(self.ratings)
        if not finite.all():
            row = int(np.argmin(finite))
            message = f"rating {self.ratings[row]} is not a finite number"
            raise DataError(message, source=self.source, row=row + 1, column="rating")

    def __len__(self) -> int:
        return len(self.ratings)

    def take(self, rows: np.ndarray) -> Ratings:
        """The ratings at `rows`: int indices [M] or a boolean mask [N]; source and report stay those of the whole."""
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            ratings=self.ratings[rows],
            timestamps=None if self.timestamps is None else self.timestamps[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            # indices might name a row twice, unless they ascend
            distinct=self.distinct and (rows.dtype == bool or bool((np.diff(rows) > 0).all())),
        )

    @property
    def scale(self) -> tuple[float, float]:
        """The smallest and the largest rating; DataError when there are none."""
        if not len(self):
            raise DataError("no ratings, so there is no rating scale", source=self.source)
        return float(self.ratings.min()), float(self.ratings.max())


def resolve_repeats(ratings: Ratings, on_repeat: OnRepeat, row_numbers: np.ndarray | None = None) -> Ratings:
    """Leave one rating per (user, item) pair and add the rows removed to the report.

    The survivor is the last row of the pair in the order of the source, whatever its timestamp, with all its columns;
    survivors keep their order.

    Args:
        ratings: N ratings.
        on_repeat: "last" keeps the last rating of a pair, "mean" gives the last row the mean rating of the pair,
            "error" raises.
        row_numbers: [N] row numbers in the source, for the message; 1..N when None.

    Raises:
        DataError: a pair occurs twice under "error"; names both rows.
    """
    if ratings.distinct:
        return ratings
    n_rows = len(ratings)
    users, items = (_codes(ids, ratings.source) for ids in (ratings.users, ratings.items))
    groups = _codes(users * np.int64(n_rows) + items, ratings.source)
    n_groups = int(groups.max()) + 1 if n_rows else 0
    if n_groups == n_rows:
        return replace(ratings, distinct=True)
    if on_repeat == "error":
        raise _repeat_error(ratings, groups, np.arange(1, n_rows + 1) if row_numbers is None else row_numbers)
    last = np.empty(n_groups, dtype=np.int64)
    last[groups] = np.arange(n_rows)  # of several assignments to one element, numpy keeps the last
    kept = np.sort(last)
    report = replace(ratings.report, repeated_pairs=ratings.report.repeated_pairs + n_rows - n_groups)
    result = replace(ratings.take(kept), report=report, distinct=True)
    if on_repeat == "mean":
        means = np.bincount(groups, weights=ratings.ratings) / np.bincount(groups)
        result = replace(result, ratings=means[groups[kept]])
    return result


def recheck(ratings: Ratings, policies: ReadReport, rating_scale: tuple[float, float] | None) -> Ratings:
    """Apply the options that concern values to ratings that were read, or made, before."""
    lowest, highest = (-math.inf, math.inf) if rating_scale is None else rating_scale
    good = (ratings.ratings >= lowest) & (ratings.ratings <= highest)
    if not good.all():
        if policies.on_bad_row == "error":
            index = int(np.argmin(good))
            message = f"rating {ratings.ratings[index]} is outside the rating scale {lowest:g}..{highest:g}"
            raise DataError(message, source=ratings.source, row=index + 1, column="rating")
        if not good.any():
            raise DataError("no ratings lie within the rating scale", source=ratings.source)
        skipped = ratings.report.bad_rows_skipped + int((~good).sum())
        ratings = replace(ratings.take(good), report=replace(ratings.report, bad_rows_skipped=skipped))
    return resolve_repeats(ratings, policies.on_repeat)


def _codes(ids: np.ndarray, source: str) -> np.ndarray:
    """Number the distinct ids 0, 1, ... by first occurrence; [N] -> [N] int64."""
    import pyarrow as pa

    # Hashing in Arrow: numpy's sort of object arrays takes seconds for a million strings.
    try:
        column = pa.array(ids, pa.int64() if ids.dtype == np.int64 else pa.large_string())
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"ids must be all integers or all strings ({error})", source=source) from error
    if column.null_count:
        raise DataError("ids must be all integers or all strings, none missing", source=source)
    return np.asarray(column.dictionary_encode().indices.to_numpy(), dtype=np.int64)


def _repeat_error(ratings: Ratings, groups: np.ndarray, row_numbers: np.ndarray) -> DataError:
    n_rows = len(groups)
    first = np.empty(n_rows, dtype=np.int64)
    first[groups[::-1]] = np.arange(n_rows)[::-1]
    again = int(np.argmax(first[groups] != np.arange(n_rows)))
    user, item = ratings.users[[again]].tolist()[0], ratings.items[[again]].tolist()[0]
    first_row = str(row_numbers[first[groups[again]]])
    return repeat_error(user, item, first_row, ratings.source, int(row_numbers[again]))


def repeat_error(user: int | str, item: int | str, first_row: str, source: str, row: int) -> DataError:
    """What to raise for a repeated pair under the policy "error"."""
    return DataError(
        f"user {user!r} rates item {item!r} again, first in row {first_row}; "
        "use on_repeat='last' or 'mean' (--on-repeat last) to keep one rating per pair",
        source=source,
        row=row,
    )
