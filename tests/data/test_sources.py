"""Reading objects in memory, Parquet and Arrow files, and the refusal of what cannot be read."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdmc_fast.data import Ratings, read_ratings
from mfdmc_fast.errors import DataError, MFDMCError


def triples(ratings: Ratings) -> list[tuple[Any, Any, float]]:
    return list(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True))


EXPECTED = [(1, 10, 4.0), (1, 20, 3.5), (2, 10, 1.0)]


# ---- Objects in memory ----

FRAME = {"user": [1, 1, 2], "item": [10, 20, 10], "rating": [4.0, 3.5, 1.0], "fold": [0, 1, 0]}


@pytest.mark.parametrize(
    "make",
    [pa.table, lambda data: pa.RecordBatch.from_pydict(data), pd.DataFrame, pl.DataFrame],
    ids=["Table", "RecordBatch", "pandas", "polars"],
)
def test_tables(make: Callable[[Any], Any]) -> None:
    ratings = read_ratings(make(FRAME), keep=["fold"])
    assert triples(ratings) == EXPECTED
    assert ratings.columns["fold"].tolist() == [0, 1, 0]
    strings = read_ratings(make({**FRAME, "user": ["a", "a", "b"]}))
    assert strings.users.tolist() == ["a", "a", "b"]
    with pytest.raises(DataError, match="row 2, column rating: rating None is missing"):
        read_ratings(make({**FRAME, "rating": [1.0, None, 2.0]}))


def test_categories_missing_values_and_dates_of_tables() -> None:
    frame = pd.DataFrame(
        {
            "user": pd.Categorical(["a", "b", "a"]),
            "item": [1, np.nan, 3],
            "rating": pd.array([4, 5, None], dtype="Int64"),
            "timestamp": pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-03"]),
            "probe": [True, False, True],
            "name": ["x", None, "z"],
        },
        index=[5, 6, 7],
    )
    ratings = read_ratings(frame, on_bad_row="skip", keep=["probe", "name"])
    assert triples(ratings) == [("a", 1, 4.0)]
    assert ratings.timestamps is not None
    assert ratings.timestamps.tolist() == [946684800]
    assert ratings.columns["probe"].tolist() == [True]
    enum = pl.DataFrame(FRAME).with_columns(pl.col("user").cast(pl.String).cast(pl.Categorical))
    assert triples(read_ratings(enum)) == EXPECTED
    decimal = pa.table({**FRAME, "rating": pa.array(["4", "3.5", "1"]).cast(pa.decimal128(5, 2))})
    assert triples(read_ratings(decimal)) == EXPECTED


def test_arrays() -> None:
    users, items, values = np.array([1, 1, 2]), np.array([10, 20, 10]), np.array([4, 3.5, 1])
    assert triples(read_ratings((users, items, values))) == EXPECTED
    assert triples(read_ratings([users.tolist(), items.astype(str), values.astype(np.float32)])) == EXPECTED
    assert triples(read_ratings(np.stack([users, items, values], axis=1))) == EXPECTED
    assert triples(read_ratings((pd.Series(users), pd.Series(items), pd.Series(values)))) == EXPECTED
    timed = read_ratings((users, items, values, [3, 2, 1]))
    assert timed.timestamps is not None
    assert timed.timestamps.tolist() == [3, 2, 1]
    assert read_ratings((users, items, values, [True, False, True])).timestamps is None
    owned = read_ratings((users, items, values))
    for array in (owned.users, owned.items, owned.ratings):
        array[0] = 0
    assert (users[0], items[0], values[0]) == (1, 10, 4.0)


def test_tables_without_rows_are_refused() -> None:
    for make in (pa.table, pd.DataFrame, pl.DataFrame):
        with pytest.raises(DataError, match="no ratings: there are no data rows"):
            read_ratings(make({"user": [], "item": [], "rating": []}))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok"])
def test_sparse_matrices_keep_explicit_zeros(kind: str) -> None:
    matrix = scipy.sparse.coo_matrix(([4.0, 3.5, 0.0], ([0, 0, 2], [1, 3, 0])), shape=(4, 5))
    expected = [(0, 1, 4.0), (0, 3, 3.5), (2, 0, 0.0)]
    assert sorted(triples(read_ratings(matrix.asformat(kind)))) == expected
    assert sorted(triples(read_ratings(scipy.sparse.csr_array(matrix)))) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "not a source of ratings"),
        (3, "not a source of ratings"),
        ([(1, 2, 3), (1, 3, 4)], "not a source of ratings"),
        (np.zeros((3, 5)), "not a source of ratings"),
        (np.zeros(3), "not a source of ratings"),
        (([1, 2], [1, 2], [3]), r"the columns have different lengths: \[2, 2, 1\]"),
        (([1, "a"], [1, 2], [3, 4]), "cannot be read as columns"),
        (([1, 2**70], [1, 2], [3, 4]), "cannot be read as columns"),
        ((np.zeros((2, 2)), [1, 2], [3, 4]), "cannot be read as columns"),
        ((["\ud800"], [1], [3]), "cannot be read as columns"),
        (([1, 2], [1, 2], [True, False]), "values of type bool are not numbers"),
        (pa.array([1, 2]), "cannot be read as columns"),
    ],
)
def test_unsuitable_objects_are_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ratings(source)


# ---- Files ----


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def write_feather(table: pa.Table, path: Path) -> None:
    pyarrow.feather.write_feather(table, path)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_parquet, "r.parquet"),
        (write_parquet, "r.bin"),
        (write_feather, "r.feather"),
        (write_feather, "r.bin"),
        (write_stream, "r.arrow"),
    ],
)
def test_parquet_and_arrow_files(write: Callable[[pa.Table, Path], None], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(pa.table(FRAME), path)
    ratings = read_ratings(path, keep=["fold"])
    assert triples(ratings) == EXPECTED
    assert list(ratings.columns) == ["fold"]
    zipped = tmp_path / (name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert triples(read_ratings(zipped)) == EXPECTED
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{name}: the (Parquet|Arrow) file is truncated or damaged"):
        read_ratings(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_ratings(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    zipped = gzip.compress(b"1,2,3\n" * 100)
    refused("a.csv.gz", zipped[:-9], "the gzip file is truncated or damaged")
    refused("b.csv.gz", b"1,2,3\n", "the gzip file is truncated or damaged")
    refused("c.csv.gz", zipped[:15] + b"xxxx" + zipped[19:], "the gzip file is truncated or damaged")
    refused("d.parquet", b"1,2,3\n", "the Parquet file is truncated or damaged")
    refused("e.arrow", b"1,2,3\n", "the Arrow file is truncated or damaged")
    refused("f.csv", b"1,2,3\n1,\x00,3\n", "binary data or UTF-16")
    refused("g.csv", "1,2,3\n".encode("utf-16"), "binary data or UTF-16")
    refused("h.pkl", b"1,2,3\n", "pickle files are not read")
    refused("i.csv", pickle.dumps([1, 2, 3]), "pickle files are not read")
    refused("j.csv.gz", gzip.compress(pickle.dumps([1, 2, 3])), "pickle files are not read")
    refused("k.csv", b'\n1,2,3,a\n4,5,6,"b\n7,8,9,c\n', "row 3: a quote is left open")
    refused("l.csv", b'1,2,3,a\n4,5,6,"b\n' + b"7,8,9,c\n" * 300_000, "is a quote left open?")
    refused("m.csv", b"," * 5000, "more than 1024 columns")


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        read_ratings(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder, but not a store"):
        read_ratings(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_ratings("a\0b")
    with pytest.raises(DataError, match="cannot be read"):
        read_ratings(tmp_path / ("x" * 5000))


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(["parquet", "feather"]))
def test_damaged_binary_files_either_read_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    (write_parquet if kind == "parquet" else write_feather)(pa.table(FRAME), path)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_ratings(path)
    except MFDMCError as error:
        assert str(path) in str(error)  # noqa: PT017 - success is allowed too
