"""The rules by which the columns of any source become ratings, pairs of ids, or a list of ids.

A row is bad when an id is missing (null, NaN, empty) or a fractional number, the rating is not a finite number or lies
outside the rating scale, a timestamp that was asked for is not a number, or a line of text has the wrong number of
fields. `mfdmc_fast.data.vocabulary` has the rules for ids.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mfdmc_fast.data.ratings import Ratings, ReadReport, resolve_repeats
from mfdmc_fast.data.vocabulary import id_array, plain_ids
from mfdmc_fast.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Role = Literal["user", "item", "rating", "timestamp", "id"]

_NO_ID = "is neither an integer nor a string"
_SKIP_HINT = "use on_bad_row='skip' (--on-bad-row skip) to drop such rows"


@dataclass
class SourceTable:
    """The columns of a source before any screening.

    Attributes:
        source: path or description.
        columns: Arrow chunked arrays of n rows.
        names: their names; None without a header.
        row_numbers: [n] int64, the 1-based number of every row, in text files that of its line.
        malformed: row number and fault of the first line of text that could not become a row of the table.
        n_malformed: how many such lines there are.
    """

    source: str
    columns: list[pa.ChunkedArray]
    names: list[str] | None
    row_numbers: np.ndarray
    malformed: tuple[int, str] | None = None
    n_malformed: int = 0

    def label(self, position: int) -> str:
        """The column in messages: its name, or its 1-based position."""
        return str(position + 1) if self.names is None else self.names[position]


class _Fault(NamedTuple):
    """Rows [n] that are bad for one reason."""

    role: Role
    mask: np.ndarray
    reason: str


@dataclass
class Screened:
    """The n good rows of a table.

    Attributes:
        user_ids, item_ids: [n] Arrow int64 or large_string without nulls.
        ratings: [n] float64.
        timestamps: [n] Arrow column of any type, or None.
        row_numbers: [n] as in `SourceTable`.
        report: what became of the rows.
        good: [rows of the table] mask of the good ones.
    """

    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray
    ratings: np.ndarray
    timestamps: pa.ChunkedArray | None
    row_numbers: np.ndarray
    report: ReadReport
    good: np.ndarray


def screened(
    table: SourceTable,
    roles: dict[Role, int],
    *,
    timestamp_required: bool,
    rating_scale: tuple[float, float] | None,
    policies: ReadReport,
) -> Screened:
    """Screen the rows of a table by the rules of this module; arguments as in `ratings_from_table`.

    Raises:
        DataError: a bad row under the policy "error", a column of an unsuitable type.
    """
    columns = {role: decoded(table.columns[at]) for role, at in roles.items()}
    user_ids = plain_ids(columns["user"], table.source, table.label(roles["user"]))
    item_ids = plain_ids(columns["item"], table.source, table.label(roles["item"]))
    ratings = _numbers(columns["rating"], table, roles["rating"])
    faults = [
        _Fault("user", user_ids.is_null().to_numpy(), _NO_ID),
        _Fault("item", item_ids.is_null().to_numpy(), _NO_ID),
        _Fault("rating", ~np.isfinite(ratings), "is not a finite number"),
    ]
    if rating_scale is not None:
        lowest, highest = rating_scale
        outside = (ratings < lowest) | (ratings > highest)
        faults.append(_Fault("rating", outside, f"is outside the rating scale {lowest:g}..{highest:g}"))
    if timestamp_required:
        times = _numbers(columns["timestamp"], table, roles["timestamp"])
        faults.append(_Fault("timestamp", ~np.isfinite(times), "is not a finite number"))
    good = ~np.logical_or.reduce([fault.mask for fault in faults])
    n_rows = len(good) + table.n_malformed
    report = replace(policies, rows=n_rows, bad_rows_skipped=n_rows - int(good.sum()))
    if report.bad_rows_skipped and report.on_bad_row == "error":
        raise _first_bad_row(table, roles, faults, _SKIP_HINT)
    return Screened(
        _filtered(user_ids, good),
        _filtered(item_ids, good),
        ratings[good],
        _filtered(columns["timestamp"], good) if "timestamp" in columns else None,
        table.row_numbers[good],
        report,
        good,
    )


def ratings_from_table(
    table: SourceTable,
    roles: dict[Role, int],
    kept: dict[str, int],
    *,
    timestamp_required: bool,
    rating_scale: tuple[float, float] | None,
    policies: ReadReport,
) -> Ratings:
    """Screen the rows of a table and convert them, by the rules of this module.

    Args:
        table: n rows.
        roles: column positions of user, item and rating, and of the timestamp if there may be one.
        kept: names and positions of the columns for `Ratings.columns`.
        timestamp_required: whether a timestamp that is not a number makes a row bad; otherwise it only means that the
            ratings have no timestamps.
        rating_scale: lowest and highest valid rating, or None for any.
        policies: the report to fill; its policies apply.

    Raises:
        DataError: a bad row or a repeated pair under the policy "error", a column of an unsuitable type, no ratings.
    """
    rows = screened(table, roles, timestamp_required=timestamp_required, rating_scale=rating_scale, policies=policies)
    check_rows_left(rows.report, table.source)
    result = Ratings(
        users=id_array(rows.user_ids),
        items=id_array(rows.item_ids),
        ratings=rows.ratings,
        timestamps=None if rows.timestamps is None else timestamp_array(rows.timestamps),
        columns={name: _kept_array(_filtered(decoded(table.columns[at]), rows.good)) for name, at in kept.items()},
        source=table.source,
        report=rows.report,
    )
    return resolve_repeats(result, policies.on_repeat, rows.row_numbers)


def pairs_from_table(table: SourceTable, roles: dict[Role, int]) -> tuple[np.ndarray, np.ndarray]:
    """User and item ids [n] of every row of a table, in its order; a bad row raises DataError."""
    ids = {role: plain_ids(decoded(table.columns[at]), table.source, table.label(at)) for role, at in roles.items()}
    faults = [_Fault(role, column.is_null().to_numpy(), _NO_ID) for role, column in ids.items()]
    if table.n_malformed or any(fault.mask.any() for fault in faults):
        raise _first_bad_row(table, roles, faults, "mend or remove the row")
    return id_array(ids["user"]), id_array(ids["item"])


def ids_from_table(table: SourceTable, at: int) -> np.ndarray:
    """The distinct ids [n] in a column of a table with one row for each; DataError for a bad row or a repeated id."""
    column = plain_ids(decoded(table.columns[at]), table.source, table.label(at))
    faults = [_Fault("id", column.is_null().to_numpy(), _NO_ID)]
    if table.n_malformed or faults[0].mask.any():
        raise _first_bad_row(table, {"id": at}, faults, "mend or remove the row")
    ids = id_array(column)
    first: dict[Any, int] = {}
    for index, raw in enumerate(ids.tolist()):
        if first.setdefault(raw, index) != index:
            raise DataError(
                f"id {raw!r} occurs again, first in row {table.row_numbers[first[raw]]}; give every id one row, with"
                " several labels in one field as a|b|c",
                source=table.source,
                row=int(table.row_numbers[index]),
                column=table.label(at),
            )
    return ids


def check_rows_left(report: ReadReport, source: str) -> None:
    """DataError for a source without good rows."""
    if not report.rows:
        raise DataError("no ratings: there are no data rows", source=source)
    if report.bad_rows_skipped == report.rows:
        message = f"no ratings: all {report.rows} rows are bad; on_bad_row='error' (--on-bad-row error) names the first"
        raise DataError(message, source=source)


def _first_bad_row(table: SourceTable, roles: dict[Role, int], faults: list[_Fault], fix: str) -> DataError:
    errors: list[tuple[int, str | None, str]] = []
    if table.malformed is not None:
        errors.append((table.malformed[0], None, table.malformed[1]))
    for fault in faults:
        if fault.mask.any():
            index, at = int(np.argmax(fault.mask)), roles[fault.role]
            value = _python_value(table.columns[at][index])
            reason = f"{fault.role} {reprlib.repr(value)} {'is missing' if value in (None, '') else fault.reason}"
            errors.append((int(table.row_numbers[index]), table.label(at), reason))
    row, column, reason = min(errors, key=lambda error: error[0])
    return DataError(f"{reason}; {fix}", source=table.source, row=row, column=column)


def _python_value(scalar: pa.Scalar) -> Any:
    """A value for a message; its type where Python cannot hold it, such as a time in an unknown zone."""
    import pyarrow as pa

    try:
        return scalar.as_py()
    except (pa.ArrowException, LookupError, OverflowError, ValueError):
        return f"of type {scalar.type}"


def _filtered(column: pa.ChunkedArray, good: np.ndarray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column if good.all() else column.filter(pa.array(good))


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Reduce the storage types of one kind of value to one: no dictionaries, one string type, seconds for times."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        # Not by a cast of the column, which Arrow lacks for the string views of polars.
        kind = pa.large_string() if "string" in str(column.type.value_type) else column.type.value_type
        column = pa.chunked_array([part.dictionary.cast(kind).take(part.indices) for part in column.chunks], kind)
    kind = column.type
    if str(kind) in ("string", "string_view", "null"):
        return column.cast(pa.large_string())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        microseconds = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return pc.divide(microseconds.cast(pa.float64(), safe=False), 1e6)
    return column


def _numbers(column: pa.ChunkedArray, table: SourceTable, position: int) -> np.ndarray:
    """Values [n] as float64, NaN where there is none; `column` comes from `decoded`."""
    import pyarrow as pa

    if not _holds_numbers(column):
        label = table.label(position)
        raise DataError(f"values of type {column.type} are not numbers", source=table.source, column=label)
    try:
        return _writable(column.cast(pa.float64(), safe=False))
    except pa.ArrowInvalid:  # some text is not a number
        return np.array([_parse_float(text) for text in column.to_pylist()])


def _holds_numbers(column: pa.ChunkedArray) -> bool:
    """Whether values are numbers or, perhaps, their text; Arrow would also cast booleans and durations."""
    from pyarrow import types

    checks = (types.is_large_string, types.is_integer, types.is_floating, types.is_decimal)
    return any(check(column.type) for check in checks)


def _parse_float(text: str | None) -> float:
    # float() reads "1_000" and digits of any script, which Arrow's parser in the usual case does not.
    if text is None or "_" in text or not text.isascii():
        return math.nan
    try:
        return float(text)
    except ValueError:
        return math.nan


def timestamp_array(column: pa.ChunkedArray) -> np.ndarray | None:
    """Times as int64 where they all are integers, else as float64; None where some are no finite numbers."""
    import pyarrow as pa

    for kind in (pa.int64(), pa.float64()) if _holds_numbers(column) and not column.null_count else ():
        with contextlib.suppress(pa.ArrowInvalid):
            times = _writable(column.cast(kind))
            return times if np.isfinite(times).all() else None
    return None


def _kept_array(column: pa.ChunkedArray) -> np.ndarray:
    """Any column as numpy: text as int64 by the rule for ids, else as objects, None where it is null."""
    import pyarrow as pa

    if pa.types.is_large_string(column.type) and not column.null_count:
        return id_array(column)
    return _writable(column)


def _writable(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.to_numpy()
    return values if values.flags.writeable else values.copy()
