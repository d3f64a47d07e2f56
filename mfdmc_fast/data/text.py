"""Delimited text as a table of Arrow columns, with the line number of every row."""

from __future__ import annotations

import contextlib
import re
from array import array
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mfdmc_fast.data.columns import SourceTable
from mfdmc_fast.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv

HasNames = Callable[[list[str]], bool]

_DELIMITERS = ("::", "\t", ",", ";", "|", " ")
_UNIT_SEPARATOR = b"\x1f"
# Appended to text: Arrow reads no single line without a line end, and a quote that is left open swallows this line,
# which is otherwise reported as malformed: it is blank but not empty, so it has one field.
_BLANK_LINE = b"\n\x1e\n"
_MAX_TEXT_COLUMNS = 1024
_HEAD_BYTES = 1 << 20  # Arrow reads no row that is longer


def parse_text(data: bytes, name: str, delimiter: str | None, has_names: HasNames, min_fields: int) -> SourceTable:
    """The table in delimited text.

    Args:
        data: the bytes of the file, decompressed.
        name: of the file, for messages.
        delimiter: between fields, or None to detect it.
        has_names: tells from the fields of the first line whether they are column names.
        min_fields: the fewest fields of a line that a detected delimiter must give.

    Raises:
        DataError: empty, binary, or not to be split into fields.
    """
    text, _ = to_utf8(data, name)
    if not text.strip():
        raise DataError("the file is empty", source=name)
    return parse_lines(text, name, delimiter or detect_delimiter(text, name, min_fields), has_names)


def parse_lines(
    text: bytes, name: str, delimiter: str, has_names: HasNames, n_columns: int | None = None, lines_before: int = 0
) -> SourceTable:
    """The table in whole lines of UTF-8, which may be a later part of a file.

    Args:
        text: the lines.
        name: of the file, for messages.
        delimiter: between fields.
        has_names: as in `parse_text`.
        n_columns: fields of a line; None: as many as the first line has.
        lines_before: lines of the file that come before.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns, lines, faults = _split_fields(text, delimiter, name, n_columns, lines_before)
    filled = np.logical_or.reduce([pc.not_equal(column, "").to_numpy() for column in columns])
    names = None
    if filled.any():
        first = int(np.argmax(filled))
        fields = [column[first].as_py() for column in columns]
        if has_names(fields):
            names, filled[first] = fields, False
    if not filled.all():
        columns, lines = [column.filter(pa.array(filled)) for column in columns], lines[filled]
    return SourceTable(name, columns, names, lines, faults.first, faults.count)


class _Faults:
    """The lines that are no row of a table; millions of them take few bytes each.

    Attributes:
        lines: int64 numbers of all such lines of the text, also of blank ones.
        first: number in the file and fault of the first one that is not blank, or None.
        count: of those that are not blank.
        last_is_blank: whether the last of `lines` is.
    """

    def __init__(self, lines_before: int) -> None:
        self.lines = array("q")
        self.first: tuple[int, str] | None = None
        self.count = 0
        self.last_is_blank = False
        self._lines_before = lines_before

    def skip(self, line: csv.InvalidRow) -> str:
        """Remember a line, and tell Arrow to go on."""
        self.lines.append(line.number)
        self.last_is_blank = not line.text.strip()
        if not self.last_is_blank:
            self.count += 1
            if self.first is None:
                self.first = (
                    self._lines_before + line.number,
                    f"{line.actual_columns} fields where the first line has {line.expected_columns}",
                )
        return "skip"


def _split_fields(
    text: bytes, delimiter: str, name: str, n_columns: int | None, lines_before: int
) -> tuple[list[pa.ChunkedArray], np.ndarray, _Faults]:
    """Columns of strings, their line numbers [n] int64, and the other lines."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    faults = _Faults(lines_before)
    quoted = b'"' in text and len(delimiter) == 1
    text, separator = with_byte_delimiter(text, delimiter)
    # Arrow takes the number of fields from the first line, so that must not be a blank one.
    n_blank, named = 0, None if n_columns is None else [f"f{at}" for at in range(n_columns)]
    if named is None:
        n_blank = len(re.findall(rb"\r\n?|\n", text[: len(text) - len(text.lstrip())]))
        _check_width(text, n_blank, separator, quoted, name)
    # One thread, or Arrow tells no line numbers. All columns as strings: Arrow would guess types and lose "007".
    try:
        table = csv.read_csv(
            pa.BufferReader(text + _BLANK_LINE),
            read_options=csv.ReadOptions(
                column_names=named, autogenerate_column_names=named is None, use_threads=False, skip_rows=n_blank
            ),
            parse_options=_parse_options(separator, quoted, faults.skip),
            convert_options=csv.ConvertOptions(column_types={f"f{at}": pa.string() for at in range(_MAX_TEXT_COLUMNS)}),
        )
    except pa.ArrowException as error:
        message = f"cannot be parsed as text with delimiter {delimiter!r} ({error}){'; is a quote left open?' * quoted}"
        raise DataError(message, source=name) from error
    n_lines = n_blank + table.num_rows + len(faults.lines)
    if quoted and table.num_columns > 1 and not (faults.last_is_blank and faults.lines[-1] == n_lines):
        raise DataError(
            "a quote is left open in the last row that could be read", source=name, row=lines_before + n_lines
        )
    is_row = np.ones(n_lines + 1, dtype=bool)
    is_row[: n_blank + 1] = False
    is_row[np.frombuffer(faults.lines, dtype=np.int64)] = False
    lines = lines_before + np.flatnonzero(is_row)
    return [pc.utf8_trim_whitespace(column) for column in table.columns], lines, faults


def _check_width(text: bytes, n_blank: int, separator: str, quoted: bool, name: str) -> None:
    """DataError for too many columns: Arrow allocates memory for each, and ends the process where there is none."""
    import pyarrow as pa
    from pyarrow import csv

    n_fields = 1

    def count(line: csv.InvalidRow) -> str:
        nonlocal n_fields
        n_fields = line.expected_columns
        return "skip"

    # Opening a stream reads its first block, converts no column that is not asked for, and tells of the blank line.
    with contextlib.suppress(pa.ArrowInvalid):
        csv.open_csv(
            pa.BufferReader(text[:_HEAD_BYTES] + _BLANK_LINE),
            read_options=csv.ReadOptions(
                autogenerate_column_names=True, use_threads=False, skip_rows=n_blank, block_size=2 * _HEAD_BYTES
            ),
            parse_options=_parse_options(separator, quoted, count),
            convert_options=csv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.string()}),
        )
    if n_fields > _MAX_TEXT_COLUMNS:
        raise DataError(f"more than {_MAX_TEXT_COLUMNS} columns in the first line", source=name)


def _parse_options(separator: str, quoted: bool, handler: Callable[[csv.InvalidRow], str]) -> csv.ParseOptions:
    from pyarrow import csv

    return csv.ParseOptions(
        delimiter=separator,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
        ignore_empty_lines=False,
        invalid_row_handler=handler,
    )


def to_utf8(data: bytes, name: str) -> tuple[bytes, str]:
    """The text as UTF-8 without a byte order mark, and its encoding: "ascii", "utf-8" or, for all else, "latin-1"."""
    if b"\0" in data:
        raise DataError("binary data or UTF-16, not text in UTF-8 or latin-1, Parquet or Arrow", source=name)
    if data.isascii():
        return data, "ascii"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1").encode("utf-8"), "latin-1"
    return data.removeprefix(b"\xef\xbb\xbf"), "utf-8"


def detect_delimiter(text: bytes, name: str, min_fields: int) -> str:
    """The delimiter by which most of the first lines have the same number, at least `min_fields`, of fields."""
    lines = [line for line in text[: 1 << 16].splitlines()[:20] if line.strip()]
    lines = [re.sub(rb'"[^"]*"', b"q", line) for line in lines]
    best, best_agreement = None, 0
    for delimiter in _DELIMITERS:
        counts = Counter(len(line.split(None if delimiter == " " else delimiter.encode())) for line in lines)
        n_fields, agreement = counts.most_common(1)[0]
        if n_fields >= min_fields and agreement > best_agreement:
            best, best_agreement = delimiter, agreement
    if best is None:
        raise DataError(
            f"no usual delimiter gives {min_fields} fields per line; pass delimiter= (--delimiter)", source=name
        )
    return best


def with_byte_delimiter(text: bytes, delimiter: str) -> tuple[bytes, str]:
    """Rewrite the text for Arrow, which splits at every single byte of one kind; returns it with that delimiter."""
    if delimiter == " ":
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\t", b" ")
        while b"  " in text:
            text = text.replace(b"  ", b" ")
        return text.replace(b"\n ", b"\n").replace(b" \n", b"\n").strip(b" "), delimiter
    if len(delimiter.encode()) > 1:
        return text.replace(delimiter.encode(), _UNIT_SEPARATOR), _UNIT_SEPARATOR.decode()
    return text, delimiter
