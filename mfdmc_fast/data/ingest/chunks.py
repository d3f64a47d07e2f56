"""Files of ratings as chunks of rows, read one after the other, so that no file need fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfdmc_fast.data.columns import Role, Screened, SourceTable, screened
from mfdmc_fast.data.ingest.plain_text import Layout, clean_rows
from mfdmc_fast.data.ingest.rows import Rows, rows_of
from mfdmc_fast.data.ratings import ReadReport
from mfdmc_fast.data.readers import Column, column_roles, file_kind, ratings_header
from mfdmc_fast.data.text import detect_delimiter, parse_lines, to_utf8
from mfdmc_fast.data.vocabulary import integers_if_canonical
from mfdmc_fast.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 32 << 20  # of text
FIRST_BYTES = 1 << 20  # from which columns, delimiter and header are told
_CHUNK_ROWS = 1 << 21
_ROLES: tuple[Role, ...] = ("user", "item", "rating")


@dataclass(frozen=True)
class ReadOptions:
    """The options of `read_ratings` that hold for every source; plain values."""

    user: Column | None = None
    item: Column | None = None
    rating: Column | None = None
    timestamp: Column | None = None
    delimiter: str | None = None
    header: bool | None = None
    rating_scale: tuple[float, float] | None = None
    policies: ReadReport = field(default_factory=ReadReport)

    @property
    def requested(self) -> dict[Role, Column | None]:
        """The columns that are named."""
        return {"user": self.user, "item": self.item, "rating": self.rating, "timestamp": self.timestamp}

    def screen(self, table: SourceTable, roles: dict[Role, int]) -> Screened:
        """The good rows of a table."""
        return screened(
            table,
            roles,
            timestamp_required=self.timestamp is not None,
            rating_scale=self.rating_scale,
            policies=self.policies,
        )


class TextChunk:
    """Whole lines of a text file."""

    def __init__(self, name: str, data: bytes, layout: Layout, options: ReadOptions, first: bool) -> None:
        self._name, self._data, self._layout, self._options, self._first = name, data, layout, options, first

    def rows(self, lines_before: int = 0) -> Rows:
        """The good rows; row numbers go on from the lines that come before in the file."""
        text, encoding = to_utf8(self._data, self._name)
        rows = None if self._first else clean_rows(text, self._layout, self._options.rating_scale)
        if rows is None:
            layout = self._layout
            table = parse_lines(
                text,
                self._name,
                layout.delimiter,
                lambda _: self._first and layout.names is not None,
                layout.n_columns,
                lines_before,
            )
            table.names = layout.names
            lines = text.count(b"\n") or text.count(b"\r")
            rows = rows_of(self._options.screen(table, layout.roles), lines)
        rows.encoding = encoding
        return rows


class TableChunk:
    """Rows of a Parquet or Arrow file."""

    def __init__(
        self, name: str, names: list[str], batch: pa.RecordBatch, roles: dict[Role, int], options: ReadOptions
    ) -> None:
        self._name, self._names, self._batch, self._roles, self._options = name, names, batch, roles, options

    def rows(self, lines_before: int = 0) -> Rows:
        """The good rows; row numbers go on from the rows that come before in the file."""
        import pyarrow as pa

        n = self._batch.num_rows
        numbers = np.arange(lines_before + 1, lines_before + n + 1)
        columns = [pa.chunked_array([column]) for column in self._batch.columns]
        screen = self._options.screen(SourceTable(self._name, columns, self._names, numbers), self._roles)
        return rows_of(screen, lines=n)


Chunk = TextChunk | TableChunk


class Source:
    """A file of ratings: text, Parquet or Arrow, text also compressed by gzip or zstd.

    Args:
        path: the file.
        options: how to read it.

    Attributes:
        path: the file.
        size: its bytes.
        modified_ns: when it was changed.

    Raises:
        DataError: no such file, or not one of ratings.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self._options = path, options
        try:
            status = os.stat(path)
            if path.is_dir():
                raise DataError("is a folder, not a file of ratings", source=str(path))
            with open(path, "rb") as file:
                self._kind = file_kind(path, file.read(8))
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", source=str(path)) from error
        self.size, self.modified_ns = status.st_size, status.st_mtime_ns

    def chunks(self) -> Iterator[tuple[Chunk, float]]:
        """Its chunks in order, always the same ones, each with the share of the file that is read."""
        return self._text_chunks() if self._kind in ("text", "gzip", "zstd") else self._table_chunks()

    def _text_chunks(self) -> Iterator[tuple[Chunk, float]]:
        import pyarrow as pa

        name, options = str(self.path), self._options
        layout: Layout | None = None
        rest = b""
        wanted = FIRST_BYTES
        try:
            with pa.OSFile(name) as file:
                stream = file if self._kind == "text" else pa.CompressedInputStream(file, self._kind)
                while True:
                    data, ended = rest, False
                    while len(data) < wanted and not ended:
                        piece = stream.read(wanted - len(data))
                        data, ended = data + piece, not piece
                    cut = len(data) if ended else _cut(data, layout)
                    if cut == 0 and not ended:  # a line or quoted field that does not end
                        wanted *= 2
                        if wanted > 8 * CHUNK_BYTES:
                            raise DataError(f"a line or quoted field of more than {len(data):,} bytes", source=name)
                        rest = data
                        continue
                    data, rest = data[:cut], data[cut:]
                    first = layout is None
                    if layout is None:
                        layout = _layout(name, data, options)
                    if data:
                        yield TextChunk(name, data, layout, options, first), file.tell() / max(self.size, 1)
                    if ended:
                        return
                    wanted = CHUNK_BYTES
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"the file is truncated or damaged ({error})", source=name) from error

    def _table_chunks(self) -> Iterator[tuple[Chunk, float]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = str(self.path)
        try:
            if self._kind == "Parquet":
                with closing(pq.ParquetFile(self.path)) as file:
                    roles, kept = self._table_roles(file.schema_arrow)
                    total, done = max(file.metadata.num_rows, 1), 0
                    for batch in file.iter_batches(_CHUNK_ROWS, columns=[file.schema_arrow.names[at] for at in kept]):
                        done += batch.num_rows
                        yield self._chunk(batch, roles, kept), done / total
                return
            with pa.memory_map(name) as mapped:
                start = mapped.read(6)
                mapped.seek(0)
                opened: Any = pa.ipc.open_file(mapped) if start == b"ARROW1" else pa.ipc.open_stream(mapped)
                roles, kept = self._table_roles(opened.schema)
                batches = map(opened.get_batch, range(opened.num_record_batches)) if start == b"ARROW1" else opened
                for batch in batches:
                    for at in range(0, batch.num_rows, _CHUNK_ROWS):
                        part = batch.slice(at, _CHUNK_ROWS).select(kept)
                        yield self._chunk(part, roles, kept), mapped.tell() / max(self.size, 1)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the {self._kind} file is truncated or damaged ({error})", source=name) from error

    def _table_roles(self, schema: pa.Schema) -> tuple[dict[Role, int], list[int]]:
        """Columns by role, as positions among those that are read, and the positions of these in the file."""
        roles = column_roles(
            SourceTable(str(self.path), [None] * len(schema.names), list(schema.names), np.empty(0)),
            self._options.requested,
            _ROLES,
        )
        kept = sorted(roles.values())
        return {role: kept.index(at) for role, at in roles.items()}, kept

    def _chunk(self, batch: pa.RecordBatch, roles: dict[Role, int], kept: list[int]) -> TableChunk:
        batch.validate(full=True)
        return TableChunk(str(self.path), batch.schema.names, batch, roles, self._options)


def _layout(name: str, data: bytes, options: ReadOptions) -> Layout:
    """Delimiter, columns and header, from the first lines of a file."""
    text, _ = to_utf8(data, name)
    if not text.strip():
        raise DataError("the file is empty", source=name)
    delimiter = options.delimiter or detect_delimiter(text, name, 3)
    requested = options.requested
    table = parse_lines(text, name, delimiter, ratings_header(options.header, requested))
    roles = column_roles(table, requested, _ROLES)
    screen = options.screen(table, roles)
    found = {"user": screen.user_ids, "item": screen.item_ids, "timestamp": screen.timestamps}
    integers = frozenset(role for role in roles if role != "rating" and _are_integers(found[role]))
    return Layout(delimiter, table.names, len(table.columns), roles, integers)


def _are_integers(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(integers_if_canonical(column).type))


def _cut(data: bytes, layout: Layout | None) -> int:
    """How many of the bytes are whole lines; 0 where not one is sure to be."""
    quoted = b'"' in data and (layout is None or len(layout.delimiter) == 1)
    for end in (b"\n", b"\r"):
        cut = data.rfind(end) + 1
        # a line end between quotes is part of a field
        n_quotes = data.count(b'"', 0, cut) if quoted else 0
        while n_quotes % 2:
            before = data.rfind(end, 0, cut - 1) + 1
            n_quotes -= data.count(b'"', before, cut)
            cut = before
        if cut:
            return cut
    return 0
