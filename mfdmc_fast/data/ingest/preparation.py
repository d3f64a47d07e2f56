"""`prepare`: files of ratings become a store."""

from __future__ import annotations

import fcntl
import glob
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.columns import check_rows_left
from mfdmc_fast.data.dataset import check_factorizable, check_single_precision
from mfdmc_fast.data.ingest.chunks import CHUNK_BYTES, FIRST_BYTES, Chunk, ReadOptions, Source
from mfdmc_fast.data.ingest.merge import Gatherer, IdUnion, Repeat, number_part, plain_id, rating_values_of
from mfdmc_fast.data.ingest.parts import Part, finished_part, id_columns, kind_of, write_part
from mfdmc_fast.data.ratings import OnBadRow, OnRepeat, ReadReport, repeat_error
from mfdmc_fast.data.readers import Column, check_options
from mfdmc_fast.data.store import Store
from mfdmc_fast.data.store_files import Manifest, new_store, write_manifest
from mfdmc_fast.errors import ConfigError, DataError

_T = TypeVar("_T")
_PARTS_VERSION = 1
# each takes some 250 MB for the chunk or bucket it works on
_MOST_WORKERS = 4


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is.

    Attributes:
        stage: "reading" the sources, then "sorting" their ratings.
        share: of the stage, 0 to 1.
        rows: worked off in the stage.
    """

    stage: str
    share: float
    rows: int


def prepare(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    user: Column | None = None,
    item: Column | None = None,
    rating: Column | None = None,
    timestamp: Column | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    on_bad_row: OnBadRow = "error",
    on_repeat: OnRepeat = "last",
    rating_scale: tuple[float, float] | None = None,
    workers: int | None = None,
    tell: Callable[[PrepareProgress], None] = lambda progress: None,
) -> Store:
    """Lay out files of ratings as a store, a folder from which training can read them piece by piece.

    Memory does not grow with the number of ratings, but with that of distinct users and items, whose ids must fit, and
    with the ratings of a single user. The work takes three to four times the bytes of the store on disk for a while, in
    the folder OUT.partial. What is done there is kept when the call is interrupted, also by SIGKILL, and used when it
    is repeated with the same sources and options.

    Args:
        sources: paths or glob patterns of text, also compressed by gzip or zstd, Parquet and Arrow files. Their order
            counts where a user rates an item twice; what a pattern matches is in order of name.
        out: the folder to make; there must be none yet, or an empty one.
        user, item, rating, timestamp, delimiter, header, on_bad_row, rating_scale: as in `read_ratings`, in every
            source.
        on_repeat: as in `read_ratings`, over all sources; "mean" keeps ratings in single precision.
        workers: threads that read and sort; default: one a processor, at most 4. Results do not depend on it.
        tell: called every now and then.

    Returns:
        The store.

    Raises:
        ConfigError: an option has a wrong value, or another process prepares the same store.
        DataError: a source cannot be read, lacks a column, has a bad row or a repeated pair under "error", there are no
            ratings, or the folder cannot be written.
    """
    check_options([user, item, rating, timestamp], delimiter, header, rating_scale)
    policies = ReadReport(on_bad_row=on_bad_row, on_repeat=on_repeat)
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"workers = {workers!r}: must be 1 or more")
    n_workers = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
    options = ReadOptions(user, item, rating, timestamp, delimiter, header, rating_scale, policies)
    files = [Source(path, options) for path in _paths(sources)]
    target = Path(os.path.abspath(out))
    check_new(target)
    with _work_folder(target, _plan(files, options)) as folder:
        try:
            with ThreadPoolExecutor(n_workers) as pool:
                work = _Work(folder, files, options, pool, n_workers, tell)
                parts = work.read()
                with new_store(target, folder / "store") as writer:
                    fields = work.merge(parts, writer.append)
                    write_manifest(folder / "store", Manifest(**fields, files=writer.finish()))
        except DataError as error:
            if not isinstance(error.__cause__, OSError):  # other sources or options are needed, hence other parts
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)
    return Store(target)


def check_new(out: Path) -> None:
    """DataError unless a store can be made there."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError("already exists; remove it or choose another name", source=str(out))
    if not out.parent.is_dir():
        raise DataError(f"the folder {out.parent} does not exist; create it first", source=str(out))
    if not os.access(out.parent, os.W_OK):
        raise DataError(f"the folder {out.parent} cannot be written; choose another", source=str(out))


def _paths(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found: list[Path] = []
    for one in given:
        pattern = glob.has_magic(str(one)) and not os.path.exists(one)
        matches = [Path(path) for path in (sorted(glob.glob(str(one))) if pattern else [one])]
        if not matches:
            raise DataError("no file has such a name", source=str(one))
        found += matches
    if not found:
        raise ConfigError("there are no sources to prepare")
    return found


def _plan(files: list[Source], options: ReadOptions) -> dict[str, Any]:
    """What parts depend on; those of an earlier run are of use if it had the same plan."""
    try:  # parts are not flushed to disk: they outlive the process, but perhaps not a power failure
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    plan = {
        "version": _PARTS_VERSION,
        "boot": boot,
        "chunk_bytes": [FIRST_BYTES, CHUNK_BYTES],
        "options": asdict(options),
        "files": [[os.path.abspath(f.path), f.size, f.modified_ns] for f in files],
    }
    return dict(json.loads(json.dumps(plan)))


@contextmanager
def _work_folder(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """OUT.partial, locked, with what an earlier run of the same plan has left there."""
    folder = out.with_name(out.name + ".partial")
    plan_file = folder / "plan.json"
    try:
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{folder}: another process prepares the same store; wait for it") from None
            if _plan_in(plan_file) != plan:
                for path in folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                plan_file.write_text(json.dumps(plan), encoding="utf-8")
            yield folder
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", source=str(folder)) from error


def _plan_in(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class _Work:
    """One run of `prepare`."""

    def __init__(
        self,
        folder: Path,
        files: list[Source],
        options: ReadOptions,
        pool: ThreadPoolExecutor,
        n_workers: int,
        tell: Callable[[PrepareProgress], None],
    ) -> None:
        self._folder, self._files, self._options, self._tell = folder, files, options, tell
        self._pool, self._n_workers = pool, n_workers
        self._first_parts: list[int] = []  # of each file

    def read(self) -> list[Part]:
        """Parts of all files, in order; those that an earlier run completed are not made again."""
        parts: list[Part] = []
        total = sum(f.size for f in self._files) or 1
        before = rows = 0
        for number, file in enumerate(self._files):
            self._first_parts.append(len(parts))
            for part, share in self._parts_of(number, file):
                parts.append(part)
                rows += part.rows
                self._tell(PrepareProgress("reading", (before + share * file.size) / total, rows))
            of_file = parts[self._first_parts[-1] :]
            _check_file(file, of_file)
            before += file.size
        return parts

    def _parts_of(self, number: int, file: Source) -> Iterator[tuple[Part, float]]:
        numbers = self._options.policies.on_repeat == "error"

        def make(chunk: Chunk, folder: Path) -> Part:
            return finished_part(folder) or write_part(folder, chunk.rows(), numbers)

        pending: deque[tuple[Chunk, float]] = deque()
        lines = 0

        def submitted() -> Iterator[Future[Part]]:
            for at, (chunk, share) in enumerate(file.chunks()):
                pending.append((chunk, share))
                yield self._pool.submit(make, chunk, self._folder / f"{number}-{at}")

        futures = self._in_order(submitted())
        while True:
            try:
                part = next(futures)
            except StopIteration:
                return
            except DataError:
                if pending:
                    pending[0][0].rows(lines)  # raises again, now that the number of the row is known
                raise
            lines += part.lines
            yield part, pending.popleft()[1]

    def _in_order(self, futures: Iterator[Future[_T]]) -> Iterator[_T]:
        """Results in the order of submission; few are ever under way."""
        waiting: deque[Future[_T]] = deque()
        try:
            for future in futures:
                waiting.append(future)
                if len(waiting) > self._n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def merge(self, every: list[Part], append: Callable[[str, Any], None]) -> dict[str, Any]:
        """Write all columns of the store; returns what its manifest says besides the files."""
        policies, source = self._options.policies, ", ".join(str(f.path) for f in self._files[:3])
        report = replace(policies, rows=sum(p.rows for p in every), bad_rows_skipped=sum(p.bad for p in every))
        check_rows_left(report, source)
        parts = [part for part in every if part.good]
        check_single_precision(max(max(abs(p.lowest), abs(p.highest)) for p in parts), source)
        ids = self._ids(parts, source)
        for side, of_side in ids.items():
            for name, column in id_columns(side, of_side).items():
                append(name, column)
        kinds = {part.timestamps for part in parts}
        times = None if None in kinds else "f64" if "f64" in kinds else "i64"
        values = None if policies.on_repeat == "mean" else rating_values_of(parts)
        gatherer = Gatherer(parts, self._number(parts, ids), len(ids["items"]), values, times, policies.on_repeat)
        user_counts, item_counts = [], np.zeros(len(ids["items"]), dtype=np.int64)
        repeats: list[Repeat] = []
        lowest, highest, done, repeated = math.inf, -math.inf, 0, 0
        total = sum(part.good for part in parts)
        buckets = (self._pool.submit(gatherer.bucket, number) for number in range(gatherer.n_buckets))
        for bucket in self._in_order(buckets):
            append("items.i32", bucket.items)
            append("ratings.f32" if values is None else "ratings.u8", bucket.ratings)
            if bucket.timestamps is not None:
                append(f"timestamps.{times}", bucket.timestamps)
            user_counts.append(bucket.counts)
            item_counts += np.bincount(bucket.items, minlength=len(item_counts))
            repeats += [] if bucket.repeat is None else [bucket.repeat]
            lowest, highest = min(lowest, bucket.lowest), max(highest, bucket.highest)
            done, repeated = done + len(bucket.items), repeated + bucket.repeated
            self._tell(PrepareProgress("sorting", (done + repeated) / total, done + repeated))
        if repeats:
            raise self._repeat_error(every, parts, min(repeats), ids)
        append("user_offsets.i64", np.concatenate([[0], np.cumsum(np.concatenate(user_counts))]))
        append("item_counts.i64", item_counts)
        return {
            "ratings": done,
            "users": len(ids["users"]),
            "items": len(ids["items"]),
            "user_ids": kind_of(ids["users"]),
            "item_ids": kind_of(ids["items"]),
            "rating_values": None if values is None else values.tolist(),
            "rating_scale": (lowest, highest),
            "timestamps": times,
            "report": replace(report, repeated_pairs=repeated),
            "sources": [
                {
                    "path": os.path.abspath(file.path),
                    "bytes": file.size,
                    "modified": datetime.fromtimestamp(file.modified_ns / 1e9, timezone.utc).isoformat(),
                }
                for file in self._files
            ],
        }

    def _ids(self, parts: list[Part], source: str) -> dict[str, Any]:
        """The distinct ids of both sides, ascending."""
        unions = {"users": IdUnion(), "items": IdUnion()}
        for part in parts:
            for side, union in unions.items():
                union.add(part.ids(side))
        ids = {side: union.result() for side, union in unions.items()}
        for side, of_side in ids.items():
            check_factorizable(side.removesuffix("s"), of_side, sum(p.good for p in parts), source)
        return ids

    def _number(self, parts: list[Part], ids: dict[str, Any]) -> npt.NDArray[np.int64]:
        """Number all parts; returns the rows of each user."""
        user_counts = np.zeros(len(ids["users"]), dtype=np.int64)
        numbered = (self._pool.submit(number_part, part, ids["users"], ids["items"]) for part in parts)
        for rows, counts in self._in_order(numbered):
            user_counts[rows] += counts
        return user_counts

    def _repeat_error(self, every: list[Part], parts: list[Part], repeat: Repeat, ids: dict[str, Any]) -> DataError:
        def place(at: tuple[int, int]) -> tuple[str, int]:
            index = every.index(parts[at[0]])
            file = max(number for number, first in enumerate(self._first_parts) if first <= index)
            before = sum(part.lines for part in every[self._first_parts[file] : index])
            return str(self._files[file].path), before + at[1]

        (source, row), (first_source, first_row) = place(repeat.again), place(repeat.first)
        user, item = (plain_id(ids[side], at) for side, at in (("users", repeat.user_row), ("items", repeat.item_row)))
        where = "" if first_source == source else f" of {first_source}"
        return repeat_error(user, item, f"{first_row}{where}", source, row)


def _check_file(file: Source, parts: list[Part]) -> None:
    """DataError for a file whose chunks would not be read as the file would."""
    if {"utf-8", "latin-1"} <= {part.encoding for part in parts}:
        raise DataError("is neither UTF-8 nor latin-1 throughout; convert it to UTF-8", source=str(file.path))
