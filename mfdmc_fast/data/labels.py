"""The rules by which the columns of a table become labels of its rows.

- Text is labels, several where a field has `a|b|c`. Where nearly every row has a text of its own (titles, names, zip
  codes) it says nothing about others and is left out.
- Numbers with at most `MOST_DISTINCT` values are labels, others are cut into bins of equally many rows. Numbers in a
  column that is named as an identifier (`brand_id`) are names, so they count as text.
- Dates become numbers: their years. Titles that end in a year, such as `Toy Story (1995)`, give it where no column
  has dates.
- Columns of 0 and 1, or false and true, are labels of the rows with 1; several of them are one block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.columns import SourceTable, decoded

if TYPE_CHECKING:
    import pyarrow as pa

MOST_DISTINCT = 32
N_BINS = 10
FLAGS = "flags"

_MISSING = ("", "na", "n/a", "nan", "null", r"\n")
_TRUTHS = {"false": 0.0, "true": 1.0}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# 01234 is a code, such as a zip code
_CODE = re.compile(r"[+-]?0\d")
_DATES = (
    re.compile(r"\d{1,2}[- ][A-Za-z]{3}[- ](\d{4})"),
    re.compile(r"(\d{4})-\d{1,2}-\d{1,2}([ T].*)?"),
    re.compile(r"\d{1,2}[/.]\d{1,2}[/.](\d{4})"),
)
_YEAR_OF_TITLE = re.compile(r".*\((\d{4})\)\s*")
_IDENTIFIERS = {"id", "isbn", "isbn13", "zip", "zipcode", "postcode", "code", "url", "uri"}


class LabelBlock(NamedTuple):
    """Labels that belong together: those of one column, or of the columns of flags.

    Attributes:
        name: of the column.
        labels: [F] their texts.
        rows: [P] int64 rows of the table that have a label.
        label_idx: [P] int64 which one; a row may have several.
    """

    name: str
    labels: list[str]
    rows: npt.NDArray[np.int64]
    label_idx: npt.NDArray[np.int64]


def label_blocks(table: SourceTable, id_position: int) -> tuple[list[LabelBlock], dict[str, str]]:
    """The blocks of labels in a table, and the columns that are left out with the reason, by the rules of this module.

    Args:
        table: n rows.
        id_position: the column of ids, which has no labels.
    """
    blocks: list[LabelBlock] = []
    flags: dict[str, npt.NDArray[np.bool_]] = {}
    ignored: dict[str, str] = {}
    titles: dict[str, list[str | None]] = {}
    has_dates = False
    for at, column in enumerate(table.columns):
        if at == id_position:
            continue
        name = f"column {at + 1}" if table.names is None else table.names[at]
        values = _values(column)
        if isinstance(values, _Years):
            has_dates = True
            name, values = f"{name} year", values.years
        found = values if isinstance(values, str) else _found(name, values)
        if isinstance(found, LabelBlock):
            blocks.append(found)
        elif isinstance(found, str):
            ignored[name] = found
            if isinstance(values, list):
                titles[name] = [texts[0] if texts else None for texts in values]
        else:
            flags[name] = found
    if not has_dates:
        for name, texts in titles.items():
            years = _matched(texts, (_YEAR_OF_TITLE,), share=0.9)
            found = "" if years is None else _numeric(f"{name} year", years)
            blocks += [found] if isinstance(found, LabelBlock) else []
    return blocks + _flag_block(flags), ignored


def block_of_texts(name: str, texts: Iterable[Iterable[str]]) -> LabelBlock:
    """Labels by row: any number of texts for each."""
    pairs = [(row, text) for row, of_row in enumerate(texts) for text in of_row]
    labels = sorted({text for _, text in pairs})
    number = {text: k for k, text in enumerate(labels)}
    rows = np.array([row for row, _ in pairs], dtype=np.int64)
    return LabelBlock(name, labels, rows, np.array([number[text] for _, text in pairs], dtype=np.int64))


def split_labels(text: str) -> list[str]:
    """The labels in a field: `a|b|c` are three."""
    return [part for part in (piece.strip() for piece in text.split("|")) if part.lower() not in _MISSING]


class _Years(NamedTuple):
    """What a column of dates is read as: [n] float64, NaN where there is none."""

    years: npt.NDArray[np.float64]


_Texts = list[list[str]]


def _values(column: pa.ChunkedArray) -> npt.NDArray[np.float64] | _Years | _Texts | str:
    """A column as numbers [n] with NaN for nothing, as years, as texts of every row, or why it is not read."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_timestamp(column.type) or types.is_date(column.type):
        try:
            return _Years(pc.year(column).cast(pa.float64()).to_numpy())
        except pa.ArrowInvalid as error:  # an unknown time zone
            return f"is not read: {error}"
    if types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if types.is_list(column.type) or types.is_large_list(column.type):
        try:
            rows = column.to_pylist()
        except (pa.ArrowInvalid, LookupError, OverflowError, ValueError) as error:  # dates that Python cannot hold
            return f"is not read: {error}"
        return [[part for x in row or () if x is not None for part in split_labels(str(x))] for row in rows]
    column = decoded(column)
    if any(check(column.type) for check in (types.is_integer, types.is_floating, types.is_decimal)):
        numbers = np.array(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers
    if not types.is_large_string(column.type):
        return f"values of type {column.type} are not read"
    texts = [None if text is None or text.strip().lower() in _MISSING else text.strip() for text in column.to_pylist()]
    filled = [text for text in texts if text is not None]
    if not filled:
        return "is empty"
    if all(_NUMBER.fullmatch(text) and not _CODE.match(text) for text in filled):
        return np.array([np.nan if text is None else float(text) for text in texts])
    if all(text.lower() in _TRUTHS for text in filled):
        return np.array([np.nan if text is None else _TRUTHS[text.lower()] for text in texts])
    years = _matched(texts, _DATES, share=1.0)
    return _Years(years) if years is not None else [[] if text is None else split_labels(text) for text in texts]


def _matched(
    texts: Sequence[str | None], patterns: Sequence[re.Pattern[str]], share: float
) -> npt.NDArray[np.float64] | None:
    """The years in texts by the first pattern that fits this share of them; NaN elsewhere."""
    n_filled = sum(text is not None for text in texts)
    for pattern in patterns:
        found = [pattern.fullmatch(text) if text is not None else None for text in texts]
        if sum(match is not None for match in found) >= share * n_filled > 0:
            return np.array([np.nan if match is None else float(match[1]) for match in found])
    return None


def _found(name: str, values: npt.NDArray[np.float64] | _Texts) -> LabelBlock | npt.NDArray[np.bool_] | str:
    """The labels of a column, the rows [n] with a flag, or why there are none."""
    if isinstance(values, list):
        return _textual(name, values)
    distinct = np.unique(values[~np.isnan(values)])
    if np.array_equal(distinct, [0, 1]):
        has_flag: npt.NDArray[np.bool_] = values == 1
        return has_flag
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if re.split(r"[\W_]+", words)[-1] in _IDENTIFIERS:
        return _textual(name, [[] if np.isnan(x) else [f"{x:.15g}"] for x in values.tolist()])
    return _numeric(name, values)


def _textual(name: str, texts: _Texts) -> LabelBlock | str:
    block = block_of_texts(name, texts)
    n_filled, n_several = sum(bool(of_row) for of_row in texts), sum(len(of_row) > 1 for of_row in texts)
    if n_filled == 0:
        return "is empty"
    if len(block.labels) == 1 and n_filled == len(texts):
        return "is the same in every row"
    # long tails of labels are usual where a row has several; labels that are too rare go later
    if 2 * len(block.labels) > len(block.rows) and 10 * n_several < n_filled:
        return f"nearly every row has a value of its own ({len(block.labels)} in {n_filled} rows)"
    return block


def _numeric(name: str, values: npt.NDArray[np.float64]) -> LabelBlock | str:
    rows = np.flatnonzero(~np.isnan(values))
    known = values[rows]
    distinct, label_idx = np.unique(known, return_inverse=True)
    if not len(distinct):
        return "is empty"
    if len(distinct) == 1 and len(rows) == len(values):
        return "is the same in every row"
    if len(distinct) <= MOST_DISTINCT:
        return LabelBlock(name, [f"{x:.15g}" for x in distinct.tolist()], rows, label_idx.astype(np.int64))
    lowest = np.unique(np.sort(known)[np.arange(N_BINS) * len(known) // N_BINS])
    label_idx = np.searchsorted(lowest, known, side="right") - 1
    highest = [known[label_idx == k].max() for k in range(len(lowest))]
    edges = [(f"{low:.6g}", f"{high:.6g}") for low, high in zip(lowest.tolist(), highest, strict=True)]
    labels = [low if low == high else f"{low} to {high}" for low, high in edges]
    return LabelBlock(name, labels, rows, label_idx.astype(np.int64))


def _flag_block(flags: dict[str, npt.NDArray[np.bool_]]) -> list[LabelBlock]:
    if not flags:
        return []
    rows, label_idx = np.nonzero(np.stack(list(flags.values()), axis=1))
    name = FLAGS if len(flags) > 1 else next(iter(flags))
    return [LabelBlock(name, list(flags), rows.astype(np.int64), label_idx.astype(np.int64))]
