"""Reading explicit ratings from text, Parquet, Arrow files and objects in memory.

Every source first becomes a `SourceTable` of Arrow columns; `ratings_from_table` then applies the same rules to all.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mfdmc_fast.data.columns import Role, SourceTable, pairs_from_table, ratings_from_table
from mfdmc_fast.data.ratings import OnBadRow, OnRepeat, Ratings, ReadReport, recheck
from mfdmc_fast.data.store import Store, store_at
from mfdmc_fast.data.text import HasNames, parse_text
from mfdmc_fast.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

Column = str | int
FileKind = Literal["text", "gzip", "zstd", "Parquet", "Arrow"]

# What a file may grow to when it is read: ratings as text shrink to about a fifth, in columns to a twentieth.
_SMALL_BYTES, _MOST_EXPANSION = 1 << 22, 100
_CHUNK_BYTES = 1 << 20

# In a delimiter; surrogates are what a command gets for bytes that are not UTF-8.
_UNFIT = re.compile('["\r\n\0\ud800-\udfff]')

# Compared in lower case and without blanks, "_" and "-".
_ALIASES: dict[Role, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "users", "reviewerid", "customerid"),
    "item": ("itemid", "item", "iid", "items", "movieid", "movie", "bookid", "book", "productid", "product", "asin"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "timestamp": ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date"),
}


def read_ratings(
    source: Any,
    *,
    user: Column | None = None,
    item: Column | None = None,
    rating: Column | None = None,
    timestamp: Column | None = None,
    keep: Column | Sequence[Column] = (),
    delimiter: str | None = None,
    header: bool | None = None,
    on_bad_row: OnBadRow = "error",
    on_repeat: OnRepeat = "last",
    rating_scale: tuple[float, float] | None = None,
) -> Ratings:
    """Read explicit ratings; `mfdmc_fast.data.ratings` has the rules for ids and bad rows.

    Args:
        source: a path to delimited text, Parquet or Arrow IPC/Feather, each also packed by gzip or zstd; a store or the
            path of one (`mfdmc_fast.data.prepare`), whose ratings come in (user, item) order; an object with
            `__arrow_c_stream__` (pyarrow, pandas, polars); three arrays (users, items, ratings), or four with
            timestamps; an array [N, 3] or [N, 4]; a scipy sparse matrix, whose row and column numbers are the ids and
            whose stored entries, zeros included, are the ratings; or `Ratings`, to which the last three options apply.
        user, item, rating, timestamp: columns by name or 0-based position. By default the columns with usual names,
            such as user_id, movieId, stars or ts; where none of the first three has one, positions 0, 1, 2. A timestamp
            column that was not asked for (by its name, else position 3) is used if all its values are numbers.
        keep: further columns for `Ratings.columns`, there under their name, or their position without a header. Text
            becomes int64 by the rule for ids or stays text; dates become seconds since 1970.
        delimiter: of a text file; by default detected among "::", tab, comma, semicolon, "|" and space (where a run of
            spaces counts as one). Fields may be quoted with '"' unless the delimiter is longer than a character.
        header: whether a text file starts with column names. By default it does if its first line has something other
            than a number for user, item and rating and the rating is not empty, or if a column is asked for by name.
        on_bad_row: "error" raises, "skip" drops bad rows and counts them in the report.
        on_repeat: what to do when a (user, item) pair occurs again: "last" keeps the last in the order of the source,
            whatever the timestamps, "mean" keeps it with the mean rating, "error" raises.
        rating_scale: (lowest, highest) valid rating.

    Returns:
        The ratings in the order of the source.

    Raises:
        ConfigError: an option has a wrong value.
        DataError: the source cannot be read, lacks a column, has a bad row or a repeated pair under "error", or has no
            ratings. Rows count from 1; in text files they are line numbers, unless a quoted field has line breaks.
    """
    requested: dict[Role, Column | None] = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    kept = [keep] if isinstance(keep, str | int) else list(keep)
    check_options([*requested.values(), *kept], delimiter, header, rating_scale)
    policies = ReadReport(on_bad_row=on_bad_row, on_repeat=on_repeat)
    if isinstance(source, Ratings):
        return recheck(source, policies, rating_scale)
    store = store_at(source)
    if store is not None:
        _refuse_for_store(store, [*requested.values(), *kept, delimiter, header])
        return recheck(store.ratings(), policies, rating_scale)
    if isinstance(source, str | os.PathLike):
        table = load_path(Path(source), delimiter, ratings_header(header, requested, kept), min_fields=3)
    else:
        table = load_object(source)
    roles = column_roles(table, requested, ("user", "item", "rating"))
    kept_positions = [_position(table, spec) for spec in kept]
    return ratings_from_table(
        table,
        roles,
        {table.names[at] if table.names else str(at): at for at in kept_positions},
        timestamp_required=timestamp is not None,
        rating_scale=rating_scale,
        policies=policies,
    )


def read_pairs(
    source: str | os.PathLike[str],
    *,
    user: Column | None = None,
    item: Column | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read (user, item) pairs, to predict their ratings; further columns, such as ratings, are ignored.

    Args:
        source: a path, as in `read_ratings`.
        user, item: columns by name or 0-based position; by default the columns with usual names, else positions 0, 1.
        delimiter: as in `read_ratings`.
        header: whether a text file starts with column names. By default it does if its first line has usual names for
            both columns, or if a column is asked for by name.

    Returns:
        users [N] and items [N], int64 or object (str), in the order of the source.

    Raises:
        ConfigError: an option has a wrong value.
        DataError: the source cannot be read, lacks a column, has a bad row, or has no rows.
    """
    check_options([user, item], delimiter, header, None)
    store = store_at(source)
    if store is not None:
        _refuse_for_store(store, [user, item, delimiter, header])
        return store.pairs()
    has_names = _header_test(header, [user, item], lambda fields: {"user", "item"} <= set(usual_roles(fields)))
    table = load_path(Path(source), delimiter, has_names, min_fields=2)
    roles = column_roles(table, {"user": user, "item": item}, ("user", "item"))
    users, items = pairs_from_table(table, {role: roles[role] for role in ("user", "item")})
    if not len(users):
        raise DataError("no pairs: there are no data rows", source=str(source))
    return users, items


def _refuse_for_store(store: Store, options: list[Any]) -> None:
    """ConfigError where columns or the form of a text are named for a store, which has neither."""
    if any(option is not None for option in options):
        raise ConfigError(
            f"{store.path}: a store has user, item, rating and perhaps timestamp and no other columns; name columns,"
            " delimiter and header when it is prepared"
        )


def ratings_header(
    header: bool | None, requested: Mapping[Role, Column | None], kept: Sequence[Column] = ()
) -> HasNames:
    """Tells from the fields of a first line whether they are names, with the options of `read_ratings`."""
    specs = [requested[role] for role in ("user", "item", "rating")]
    checked = [spec if isinstance(spec, int) else at for at, spec in enumerate(specs)]
    return _header_test(header, [*requested.values(), *kept], lambda fields: _is_header(fields, checked))


def _header_test(header: bool | None, specs: list[Any], guess: HasNames) -> HasNames:
    """`header` as said, or as a column asked for by name says, else the guess."""
    if header is None and any(isinstance(spec, str) for spec in specs):
        header = True
    return guess if header is None else lambda _: bool(header)


def check_options(specs: list[Any], delimiter: Any, header: Any, rating_scale: Any) -> None:
    """ConfigError for options of `read_ratings` that have a wrong value."""
    for spec in specs:
        if spec is not None and (isinstance(spec, bool) or not isinstance(spec, str | int)):
            raise ConfigError(f"a column is given by its name or 0-based position, not by {spec!r}")
    if delimiter is not None and (not isinstance(delimiter, str) or not delimiter or _UNFIT.search(delimiter)):
        raise ConfigError(f"delimiter must be a string without quotes, line breaks and NUL, not {delimiter!r}")
    if header is not None and not isinstance(header, bool):
        raise ConfigError(f"header must be True, False or None (detect it), not {header!r}")
    if rating_scale is None:
        return
    try:
        lowest, highest = map(float, rating_scale)
    except (TypeError, ValueError):
        raise ConfigError(f"rating_scale must be (lowest, highest), not {rating_scale!r}") from None
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise ConfigError(f"rating_scale must be two finite numbers, the lower first, not {rating_scale!r}")


def column_roles(
    table: SourceTable, requested: Mapping[Role, Column | None], required: tuple[Role, ...]
) -> dict[Role, int]:
    """The position of each role's column: as asked for, else by a usual name, else 0, 1, 2 and 3; DataError where there
    is no such column.
    """
    roles = {role: _position(table, spec) for role, spec in requested.items() if spec is not None}
    usual = usual_roles(table.names or ())
    by_name = {role: at for role, at in usual.items() if role not in roles and at not in roles.values()}
    unresolved = [role for role in required if role not in roles and role not in by_name]
    # Some usual names but not all: a guess by position could silently take the wrong column.
    if unresolved and any(role in by_name for role in required):
        raise DataError(
            f"no {unresolved[0]} column found; give its name or position. {_describe(table)}", source=table.source
        )
    roles |= by_name
    for role in unresolved:
        roles[role] = _position(table, required.index(role))
    by_position = bool(unresolved) or table.names is None
    if "timestamp" not in roles and by_position and len(table.columns) > 3 and 3 not in roles.values():
        roles["timestamp"] = 3
    for role, other in combinations(roles, 2):
        if roles[role] == roles[other]:
            raise DataError(
                f"column {table.label(roles[role])} is both {role} and {other}; name both columns. {_describe(table)}",
                source=table.source,
            )
    return roles


def usual_roles(names: Sequence[str]) -> dict[Role, int]:
    """Positions of the columns that have a usual name."""
    plain = [re.sub(r"[\s_-]", "", name).lower() for name in names]
    found = {role: next((plain.index(a) for a in aliases if a in plain), None) for role, aliases in _ALIASES.items()}
    return {role: at for role, at in found.items() if at is not None}


def _position(table: SourceTable, spec: Column) -> int:
    if isinstance(spec, int) and 0 <= spec < len(table.columns):
        return spec
    if table.names is not None and spec in table.names:
        return table.names.index(str(spec))
    raise DataError(f"there is no column {spec!r}. {_describe(table)}", source=table.source)


def _describe(table: SourceTable) -> str:
    if table.names is None:
        return f"The source has {len(table.columns)} columns without names, positions 0 to {len(table.columns) - 1}"
    return "The columns are " + ", ".join(map(repr, table.names))


def load_object(source: Any) -> SourceTable:
    """The columns of an object in memory, as `read_ratings` takes them."""
    import pyarrow as pa

    kind = type(source)
    name = f"{kind.__module__.partition('.')[0]} {kind.__name__}".removeprefix("builtins ")
    try:
        if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
            arrow = pa.table(source)
            return _table(name, arrow.columns, arrow.column_names)
        return _table(name, [pa.chunked_array([_to_arrow(array)]) for array in _parallel_arrays(source, name)], None)
    except (pa.ArrowException, AttributeError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be read as columns: {error}", source=name) from error


def _table(name: str, columns: list[pa.ChunkedArray], names: list[str] | None) -> SourceTable:
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"the columns have different lengths: {[len(column) for column in columns]}", source=name)
    n_rows = len(columns[0]) if columns else 0
    return SourceTable(name, columns, names, np.arange(1, n_rows + 1))


def _parallel_arrays(source: Any, name: str) -> Sequence[Any]:
    """Users, items, ratings and perhaps timestamps from a sparse matrix, a 2-D array or a sequence of arrays."""
    if hasattr(source, "tocoo"):
        entries = source.tocoo()
        return entries.row, entries.col, entries.data
    if isinstance(source, np.ndarray) and source.ndim == 2 and source.shape[1] in (3, 4):
        return list(source.T)
    if isinstance(source, list | tuple) and len(source) in (3, 4):
        return source
    raise DataError(
        "not a source of ratings; give a path, a table (pyarrow, pandas, polars), arrays (users, items, ratings) or "
        "(users, items, ratings, timestamps), an array [N, 3], or a scipy sparse matrix",
        source=name,
    )


def _to_arrow(values: Any) -> pa.Array:
    import pyarrow as pa

    # Lists stay lists: np.asarray would turn a mix of numbers and strings into strings.
    return pa.array(values if isinstance(values, list | tuple) else np.asarray(values), from_pandas=True)


def load_path(path: Path, delimiter: str | None, has_names: HasNames, min_fields: int) -> SourceTable:
    """The table in a file, whose kind its first bytes or its name tell; options as in `parse_text`."""
    data = _read_bytes(path)
    kind = file_kind(path, data[:8])
    if kind in ("Parquet", "Arrow"):
        return _parse_binary(data, str(path), kind)
    return parse_text(data, str(path), delimiter, has_names, min_fields)


def file_kind(path: Path, start: bytes) -> FileKind:
    """What a file holds, by its first bytes, at least 4, or its name.

    Raises:
        DataError: a pickle.
    """
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    suffix = (path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path).suffix.lower()
    if suffix in (".pkl", ".pickle") or re.match(rb"\x80[\x02-\x05]", start):
        raise DataError("pickle files are not read; save the table as Parquet or text", source=str(path))
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return "Parquet"
    if start.startswith(b"ARROW1") or suffix in (".arrow", ".feather", ".ipc"):
        return "Arrow"
    return "text"


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b") or path.suffix.lower() == ".gz":
            return _unpacked(gzip.GzipFile(fileobj=io.BytesIO(data)), len(data), str(path))
        if data.startswith(b"\x28\xb5\x2f\xfd") or path.suffix.lower() == ".zst":
            return _unpacked_zstd(data, str(path))
        return data
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "is a directory, not a file"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"the gzip file is truncated or damaged ({error})"
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise DataError(reason, source=str(path))


def _unpacked_zstd(data: bytes, name: str) -> bytes:
    import pyarrow as pa

    try:
        return _unpacked(pa.CompressedInputStream(pa.BufferReader(data), "zstd"), len(data), name)
    except OSError as error:
        raise ValueError(f"the zstd file is truncated or damaged: {error}") from error


def _unpacked(opened: Any, n_stored: int, name: str) -> bytes:
    """The content of a compressed file, unless it would grow beyond `_refuse_bomb`."""
    parts, n_bytes = [], 0
    with opened as file:
        while part := file.read(_CHUNK_BYTES):
            n_bytes += len(part)
            _refuse_bomb(n_bytes, n_stored, name)
            parts.append(part)
    return b"".join(parts)


def _refuse_bomb(n_bytes: int, n_stored: int, name: str) -> None:
    """DataError for content of far more bytes than are stored in a file, as no ratings have."""
    if n_bytes > max(_SMALL_BYTES, _MOST_EXPANSION * n_stored):
        raise DataError(
            f"{n_stored:,} bytes expand to more than {_MOST_EXPANSION} times as many; such files are made to fill the"
            " memory and are not read. If the data is real, save it uncompressed, with no other columns",
            source=name,
        )


def _parse_binary(data: bytes, name: str, kind: Literal["Parquet", "Arrow"]) -> SourceTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferReader(data)
    try:
        if kind == "Parquet":
            file = pq.ParquetFile(buffer)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            _refuse_bomb(sum(max(group.total_byte_size, 0) for group in groups), len(data), name)
            arrow = _within_bounds(file.iter_batches(use_threads=False), file.schema_arrow, len(data), name)
        else:
            # Some tools write the stream format, which has no magic, under the same suffixes.
            opened = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
            with opened(buffer) as reader:
                batches = (
                    map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
                )
                arrow = _within_bounds(batches, reader.schema, len(data), name)
        names = arrow.column_names  # which are decoded only now
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"the {kind} file is truncated or damaged ({error})", source=name) from error
    return _table(name, arrow.columns, names)


def _within_bounds(batches: Iterable[pa.RecordBatch], schema: pa.Schema, n_stored: int, name: str) -> pa.Table:
    import pyarrow as pa

    kept, n_bytes = [], 0
    for batch in batches:
        batch.validate(full=True)  # first, as the size is taken from offsets that may point anywhere
        n_bytes += batch.nbytes
        _refuse_bomb(n_bytes, n_stored, name)
        kept.append(batch)
    return pa.Table.from_batches(kept, schema)


def _is_header(fields: list[str], checked: list[int]) -> bool:
    """Whether the first line has names: no number for user, item and rating, and some text for the rating."""
    values = [fields[at] for at in checked if at < len(fields)]
    return bool(values) and values[-1] != "" and not any(is_number(value) for value in values)


def is_number(text: str) -> bool:
    """Whether a field of text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
