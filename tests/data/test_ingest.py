"""Preparing stores: the same ratings and the same messages as reading the files whole, in any number of pieces."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfdmc_fast.data import Ratings, RatingsDataset, Store, make_planted_ratings, prepare, read_ratings
from mfdmc_fast.data.ingest import chunks, merge, plain_text
from mfdmc_fast.errors import ConfigError, DataError, MFDMCError


@pytest.fixture(autouse=True)
def _many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few lines and buckets of a few ratings, so that small files have many."""
    monkeypatch.setattr(chunks, "FIRST_BYTES", 48)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)
    monkeypatch.setattr(chunks, "_CHUNK_ROWS", 5)
    monkeypatch.setattr(merge, "BUCKET_ROWS", 7)
    monkeypatch.setattr(merge, "_WAITING", 10)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def assert_same(store: Store, expected: Ratings) -> None:
    """The store holds what reading gives: encoded, raw, and in its report."""
    store.check()
    ours, theirs = store.load(), RatingsDataset.from_ratings(expected).sorted()
    for name in ("user_idx", "item_idx", "ratings"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("users", "items"):
        assert getattr(ours, name).ids.dtype == getattr(theirs, name).ids.dtype
        assert getattr(ours, name).ids.tolist() == getattr(theirs, name).ids.tolist()
    assert store.scale == expected.scale
    assert store.report == expected.report
    raw = store.ratings()
    order = np.lexsort((theirs.items.encode(expected.items), theirs.users.encode(expected.users)))
    assert raw.users.tolist() == expected.users[order].tolist()
    assert raw.items.tolist() == expected.items[order].tolist()
    if len(np.unique(expected.ratings)) <= 256 and expected.report.on_repeat != "mean":
        assert raw.ratings.tolist() == expected.ratings[order].tolist()
    if expected.timestamps is None:
        assert raw.timestamps is None
    else:
        assert raw.timestamps is not None
        assert raw.timestamps.dtype == expected.timestamps.dtype
        assert raw.timestamps.tolist() == expected.timestamps[order].tolist()


def lines(n: int, form: Callable[[int, int, float, int], str], seed: int = 0) -> list[str]:
    """Random ratings, some pairs repeated."""
    rng = np.random.default_rng(seed)
    rows = zip(rng.integers(1, 15, n), rng.integers(1, 9, n), rng.integers(1, 11, n) / 2, range(n), strict=True)
    return [form(int(u), int(i), float(r), 1000 - t) for u, i, r, t in rows]


FORMS: dict[str, Callable[[int, int, float, int], str]] = {
    "comma": lambda u, i, r, t: f"{u},{i},{r:g},{t}",
    "three-columns": lambda u, i, r, t: f"{u}\t{i}\t{r}",
    "double-colon": lambda u, i, r, t: f"{u}::{i}::{r:g}::{t}",
    "blanks": lambda u, i, r, t: f"{u}  {i} {r:g}",
    "strings": lambda u, i, r, t: f"user {u};item-{i};{r:g};{t}",
    "umlauts": lambda u, i, r, t: f"ü{u},é{i},{r:g}",
    "zeros-before": lambda u, i, r, t: f"{u:03d},{i},{r:g},{t}",
    "one-string-late": lambda u, i, r, t: f"{'x' if t == 950 else u},{i},{r:g},{t}",
    "one-zero-late": lambda u, i, r, t: f"{'0' if t == 930 else ''}{u},{i},{r:g},{t}",
    "hexadecimal-late": lambda u, i, r, t: f"{'0xFFFFFFFFF' if t == 930 else u},{i},{r:g},{t}",
    "quoted": lambda u, i, r, t: f'"{u}","a,{i}",{r:g},{t}',
    "line-ends-in-quotes": lambda u, i, r, t: f'{u},"a\n{i}",{r:g},{t}',
    "negative": lambda u, i, r, t: f"{-u},{i * 10**17},{r - 3:g},{-t}",
    "float-times": lambda u, i, r, t: f"{u},{i},{r:g},{t}.5",
    "times-become-text": lambda u, i, r, t: f"{u},{i},{r:g},{'late' if t < 950 else t}",
    "many-ratings": lambda u, i, r, t: f"{u},{i},{r + t / 1000:g},{t}",
    "blanks-around": lambda u, i, r, t: f"{u}, {i} , {r:g} ,{t}",
    "further-columns": lambda u, i, r, t: f"{u},{i},{r:g},{t},some text,{u * i}",
    "ids-of-many-lengths": lambda u, i, r, t: f"{u**9},{(-i) ** 11},{r:g},{t}",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", list(FORMS))
def test_text_is_read_as_it_is_whole(form: str, newline: str, tmp_path: Path) -> None:
    path = written(tmp_path / "ratings.txt", newline.join(lines(90, FORMS[form])) + newline)
    # to tell a delimiter takes more lines than the first piece has here
    options: dict[str, Any] = {"delimiter": ","} if "quotes" in form else {}
    assert_same(prepare(path, tmp_path / "store", workers=2, **options), read_ratings(path, **options))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ratings.txt", "store"]


@pytest.mark.parametrize("on_repeat", ["last", "mean"])
def test_headers_options_and_repeats(tmp_path: Path, on_repeat: Any) -> None:
    text = "stars,who,what,when\n" + "\n".join(lines(120, lambda u, i, r, t: f"{r:g},{u},{i},{t}"))
    path = written(tmp_path / "r.csv", text)
    options: dict[str, Any] = {"user": "who", "item": 2, "timestamp": "when", "on_repeat": on_repeat}
    expected = read_ratings(path, **options)
    assert expected.report.repeated_pairs > 20
    assert_same(prepare(path, tmp_path / "store", **options), expected)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = lines(60, FORMS["comma"])
    rows[7], rows[20], rows[21], rows[40] = "1,2", "", ",4,3,9", "3,3,99,5"
    path = written(tmp_path / "r.csv", "\n".join(rows))
    options: dict[str, Any] = {"on_bad_row": "skip", "rating_scale": (0.5, 5)}
    expected = read_ratings(path, **options)
    assert expected.report.bad_rows_skipped == 3
    assert_same(prepare(path, tmp_path / "store", **options), expected)


@pytest.mark.parametrize(
    ("row", "bad"), [(3, "1,2"), (31, "1,2"), (44, "5,,3,1"), (59, "5,1,no,7"), (50, "5,1,inf,7"), (33, '5,"1,2,7')]
)
def test_errors_are_those_of_reading(row: int, bad: str, tmp_path: Path) -> None:
    rows = ["user,item,rating,timestamp", *lines(60, FORMS["comma"])]
    rows[17] = ""  # a blank line counts
    rows[row] = bad
    path = written(tmp_path / "r.csv", "\n".join(rows))
    with pytest.raises(DataError) as expected:
        read_ratings(path)
    with pytest.raises(DataError) as found:
        prepare(path, tmp_path / "store")
    if '"' not in bad:
        assert str(found.value) == str(expected.value)
        assert found.value.row == row + 1
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_a_repeated_pair_is_an_error_that_names_both_rows(tmp_path: Path) -> None:
    rows = [f"{u},{i},3" for u in range(1, 9) for i in range(1, 6)]
    rows[30] = "2,4,5"
    path = written(tmp_path / "r.csv", "\n".join(rows))
    with pytest.raises(DataError) as expected:
        read_ratings(path, on_repeat="error")
    with pytest.raises(DataError) as found:
        prepare(path, tmp_path / "store", on_repeat="error")
    assert str(found.value) == str(expected.value)
    other = written(tmp_path / "s.csv", "9,1,2\n9,2,2\n2,4,1\n")
    rows[30] = "77,4,5"
    written(path, "\n".join(rows))
    with pytest.raises(DataError, match=r"s\.csv, row 3: user 2 rates item 4 again, first in row 9 of .*r\.csv"):
        prepare([path, other], tmp_path / "store", on_repeat="error")


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_packed_text(packed: str, tmp_path: Path) -> None:
    data = ("\n".join(lines(80, FORMS["comma"])) + "\n").encode()
    whole = gzip.compress(data) if packed == "gz" else pa.compress(data, "zstd", asbytes=True)
    path = written(tmp_path / f"r.csv.{packed}", whole)
    assert_same(prepare(path, tmp_path / "store"), read_ratings(path))
    written(path, whole[:-20])
    with pytest.raises(DataError, match="truncated or damaged"):
        prepare(path, tmp_path / "other")
    with pytest.raises(DataError, match="truncated or damaged"):
        read_ratings(path)


def columns(kind: str) -> pa.Table:
    rng = np.random.default_rng(3)
    users, items = rng.integers(1, 12, 70), rng.integers(1, 12, 70)
    data: dict[str, Any] = {"userId": users, "movieId": items, "rating": rng.integers(1, 6, 70).astype(float)}
    if kind == "dictionary":
        data["userId"] = pa.array([f"u{u}" for u in users]).dictionary_encode()
    if kind == "text":
        data |= {"userId": [str(u) for u in users], "movieId": [f"{i:02d}" for i in items]}
    if kind == "dates":
        data["timestamp"] = pa.array(rng.integers(0, 10**9, 70), pa.timestamp("s"))
    return pa.table({"unused": ["x"] * 70, **data})


@pytest.mark.parametrize("kind", ["integers", "dictionary", "text", "dates"])
@pytest.mark.parametrize("suffix", ["parquet", "feather", "stream.arrow"])
def test_tables(kind: str, suffix: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"r.{suffix}", columns(kind)
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=16)
    elif suffix == "feather":
        pyarrow.feather.write_feather(table, path, chunksize=16)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, 16)
    assert_same(prepare(path, tmp_path / "store"), read_ratings(path))


def test_several_files_count_in_their_order(tmp_path: Path) -> None:
    rows = lines(100, FORMS["comma"])
    whole = written(tmp_path / "whole.csv", "\n".join(rows))
    written(tmp_path / "part-1.csv", "\n".join(rows[:30]))
    written(tmp_path / "part-2.csv.gz", gzip.compress("\n".join(rows[30:70]).encode()))
    last = written(tmp_path / "z.tsv", "\n".join(rows[70:]).replace(",", "\t"))
    store = prepare([str(tmp_path / "part-*"), last], tmp_path / "store")
    assert_same(store, read_ratings(whole))
    sources = json.loads((tmp_path / "store" / "manifest.json").read_text())["sources"]
    assert [Path(source["path"]).name for source in sources] == ["part-1.csv", "part-2.csv.gz", "z.tsv"]


def test_integers_and_strings_of_several_files_become_strings(tmp_path: Path) -> None:
    """The integers 9 and 10 come in this order, their texts in the other."""
    first = written(
        tmp_path / "a.csv", "\n".join(f"{u},{i},{i % 5},{u * i}" for u in range(8, 12) for i in range(9, 12))
    )
    second = written(tmp_path / "b.csv", "10,9,1,0\nanna,10,2,0\nanna,11,3,0\n9,9,4,0\n")
    whole = written(tmp_path / "c.csv", first.read_text() + "\n" + second.read_text())
    assert_same(prepare([first, second], tmp_path / "store"), read_ratings(whole))


def test_clean_text_goes_the_short_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    found = chunks.clean_rows
    monkeypatch.setattr(chunks, "clean_rows", lambda *a: calls.append(rows := found(*a)) or rows)
    for form in ("comma", "double-colon", "strings", "negative", "further-columns"):
        path = written(tmp_path / f"{form}.csv", "\n".join(lines(60, FORMS[form])))
        calls.clear()
        prepare(path, tmp_path / form)
        assert len(calls) > 5, form
        assert None not in calls, form


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3", "10", "007", "-0", "+5", "0x10", " 4", "x", "", "NULL", "é", "1e2", '"q"']),
            st.sampled_from(["1", "2", "30", "9223372036854775807", "9223372036854775808", "-7", "y"]),
            st.sampled_from(["1", "2.5", "4.0", "5", " 3", "nan", "-1", "1e1", "", "0x1"]),
            st.sampled_from(["", "\r"]),
        ),
        max_size=25,
    )
)
def test_whatever_is_in_a_file(rows: list[tuple[str, str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    clean = ["1,1,1", "2,30,2", "3,2,5", "10,1,4", "1,2,3"]
    path = written(folder / "r.csv", "\n".join([*clean, *(f"{u},{i},{r}{end}" for u, i, r, end in rows)]) + "\n")
    try:
        expected: Ratings | MFDMCError = read_ratings(path)
    except MFDMCError as error:
        expected = error
    if isinstance(expected, Ratings):
        assert_same(prepare(path, folder / "store"), expected)
    else:
        with pytest.raises(type(expected)) as found:
            prepare(path, folder / "store")
        assert str(found.value) == str(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("user,item,rating\n", "no data rows"),
        ("1,1,5\n1,2,4\n1,3,4\n", "only one user"),
        ("1,1,1e300\n2,2,3\n", "beyond single precision"),
        ("a,b,c,d\n" * 3, "rating 'c' is not a finite number"),
        (b"1,2,3\0\n", "binary data"),
        ("1,2,3\n" * 12 + "é,1,2\n" + "1,3,2\n" * 12, ""),
    ],
)
def test_what_cannot_be_prepared(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "r.csv", content)
    if not message:  # UTF-8 and latin-1 in one file
        written(path, path.read_bytes() + "è,1,2\n".encode("latin-1"))
        message = "neither UTF-8 nor latin-1 throughout"
    with pytest.raises(DataError, match=message):
        prepare(path, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_wrong_sources_targets_and_options(tmp_path: Path) -> None:
    path = written(tmp_path / "r.csv", "1,1,1\n2,2,2\n")
    for sources, message in (([tmp_path / "no.csv"], "No such file"), ([str(tmp_path / "*.tsv")], "no file has such")):
        with pytest.raises(DataError, match=message):
            prepare(sources, tmp_path / "store")
    with pytest.raises(DataError, match="is a folder"):
        prepare(tmp_path, tmp_path / "store")
    with pytest.raises(ConfigError, match="no sources"):
        prepare([], tmp_path / "store")
    with pytest.raises(ConfigError, match="workers = 0"):
        prepare(path, tmp_path / "store", workers=0)
    with pytest.raises(ConfigError, match="on_repeat"):
        prepare(path, tmp_path / "store", on_repeat="first")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not exist; create it first"):
        prepare(path, tmp_path / "no" / "store")
    prepare(path, tmp_path / "store")
    with pytest.raises(DataError, match="already exists"):
        prepare(path, tmp_path / "store")
    (tmp_path / "empty").mkdir()
    assert len(prepare(path, tmp_path / "empty")) == 2


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path / "r.csv", "1,1,1\n2,2,2\n")
    (tmp_path / "store.partial").mkdir()
    with open(tmp_path / "store.partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process prepares the same store"):
            prepare(path, tmp_path / "store")
    assert len(prepare(path, tmp_path / "store")) == 2


_KILLED = """
import os, signal, sys
from mfdmc_fast.data import prepare
from mfdmc_fast.data.ingest import chunks
chunks.FIRST_BYTES, chunks.CHUNK_BYTES = 48, 64
def tell(progress):
    if progress.stage == sys.argv[3] and progress.share > 0.4:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(sys.argv[1], sys.argv[2], workers=1, tell=tell)
"""


@pytest.mark.parametrize("stage", ["reading", "sorting"])
def test_what_a_killed_run_has_done_is_used(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = written(tmp_path / "r.csv", "\n".join(lines(120, FORMS["comma"]))), tmp_path / "store"
    run = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(store), stage], timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert not store.exists()
    n_chunks = sum(1 for _ in chunks.Source(path, chunks.ReadOptions()).chunks())
    done = len(list((tmp_path / "store.partial").glob("0-*[0-9]")))
    assert 0.4 * n_chunks <= done <= n_chunks
    parsed = []
    rows = chunks.TextChunk.rows
    monkeypatch.setattr(chunks.TextChunk, "rows", lambda self, *a: parsed.append(1) or rows(self, *a))
    assert_same(prepare(path, store), read_ratings(path))
    # parts are used if this process has the chunks of the killed one
    assert len(parsed) == n_chunks - done
    assert not (tmp_path / "store.partial").exists()


def test_parts_of_other_sources_or_options_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = written(tmp_path / "r.csv", "\n".join(lines(60, FORMS["comma"]))), tmp_path / "store"

    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    for change in (lambda: written(path, "\n".join(lines(60, FORMS["comma"], seed=1))), lambda: None):
        with pytest.raises(KeyboardInterrupt):
            prepare(path, store, tell=interrupt)
        assert any((tmp_path / "store.partial").glob("0-*"))
        change()
        os.utime(path, ns=(1, 1) if path.stat().st_mtime_ns != 1 else (2, 2))
        assert_same(prepare(path, store), read_ratings(path))
        for file in store.iterdir():
            file.unlink()


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    path = written(tmp_path / "r.csv", "\n".join(lines(80, FORMS["comma"])))
    told = []
    prepare(path, tmp_path / "store", tell=told.append, workers=1)
    for stage in ("reading", "sorting"):
        of_stage = [p for p in told if p.stage == stage]
        assert len(of_stage) > 3
        assert [p.share for p in of_stage] == sorted(p.share for p in of_stage)
        assert (of_stage[-1].share, of_stage[-1].rows) == (1.0, 80)


def test_digits() -> None:
    values = np.array([0, 7, -7, 10, 99, -100, 10**18, -(10**18), 2**63 - 1, -(2**63)])
    for value in values:
        assert plain_text._digits(np.array([value])) == len(str(value))
    assert plain_text._digits(values) == sum(len(str(v)) for v in values)


def test_all_of_a_larger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # chunks and buckets as they are
    ratings = make_planted_ratings(400, 90, 9000, seed=3)
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True)
    path = written(tmp_path / "r.csv", "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    assert_same(prepare(path, tmp_path / "store"), read_ratings(path))
