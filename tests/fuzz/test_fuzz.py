"""Damaged files: nothing but the package's own errors, in bounded time and memory, from every reader."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz_corpus import CORPUS, Case
from fuzz_mutations import mutate
from fuzz_targets import MOST_MB, MOST_SECONDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfdmc_fast.data import read_features, read_pairs, read_ratings
from mfdmc_fast.errors import DataError

TARGETS = ("ratings", "pairs", "delimited", "features", "gzip", "parquet", "arrow", "settings", "model", "checkpoint")
RESUMED = ("resume-cpu", "resume-adagrad", "resume-reference", "resume-teacher")
CASES = 400


def results(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """What `fuzz_cases.py` prints, in one process of bounded memory for all cases."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_cases.py")), str(folder), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    if run.returncode:
        last = lines[-1:] or "nothing"
        pytest.fail(f"died with {run.returncode} after {last}; its case is in {folder}: {run.stderr[-2000:]}")
    return lines


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What damaged files did to each target."""
    lines = results(tmp_path_factory.mktemp("cases"), CASES, 1)
    assert [line["target"] for line in lines] == [*TARGETS, *RESUMED]
    return {line["target"]: line for line in lines}


@pytest.mark.parametrize("target", [*TARGETS, *RESUMED])
def test_damaged_files_are_read_or_refused(found: dict[str, dict[str, Any]], target: str) -> None:
    result = found[target]
    assert result["findings"] == []
    assert result["cases"] == (CASES // 4 if target in RESUMED else CASES)
    assert result["seconds"] <= MOST_SECONDS
    assert result["mb"] <= MOST_MB
    # or passed over, with a warning
    assert 0 < result["refused"] <= CASES


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the files of the corpus did."""
    return {line["case"]: line for line in results(tmp_path_factory.mktemp("corpus"), "corpus")}


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_what_was_once_found_is_refused(replayed: dict[str, dict[str, Any]], case: Case) -> None:
    result = replayed[case.name]
    assert result["finding"] == ""
    assert result["seconds"] <= MOST_SECONDS
    assert result["mb"] <= MOST_MB
    assert re.search(case.says, result["said"]) if case.says else result["said"] is None, result["said"]
    assert len(result["said"] or "") < 2000


def test_the_cases_of_the_corpus_have_names_of_their_own() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    assert {case.target for case in CORPUS} <= {*TARGETS, *RESUMED}


def test_a_seed_gives_the_same_damage() -> None:
    import random

    data = b"user,item,rating\n1,2,3\n"
    assert mutate(data, random.Random(1)) == mutate(data, random.Random(1)) != data


_FIELD = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.sampled_from(["", '"', '""', '"a', 'b"c', "user_id", "rating", "NaN", "1e400", "a|b", "1995-01-01", "x (1995)"]),
)


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.lists(_FIELD, min_size=1, max_size=6), min_size=1, max_size=6),
    delimiter=st.sampled_from(["::", "\t", ",", ";", "|", " "]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
)
def test_any_table_of_text_is_read_or_refused(
    tmp_path: Path, rows: list[list[str]], delimiter: str, end: str, encoding: str
) -> None:
    path = tmp_path / "table.txt"
    path.write_bytes(end.join(delimiter.join(row) for row in rows).encode(encoding, "replace"))
    refusals = []
    for read in (read_ratings, read_pairs, lambda p: read_features(p, labels_needed=False)):
        try:
            assert len(read(path)) > 0
        except DataError as error:
            refusals.append(error)
    assert all(path.name in str(error) for error in refusals)


class TestFound:
    """Inputs that once did worse than being refused, and take more than a file; the corpus has the others."""

    def refused(self, path: Path, data: bytes, message: str, **options: Any) -> None:
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as refusal:
            read_ratings(path, **options)
        assert path.name in str(refusal.value)

    @pytest.mark.parametrize("start", [b"", b'a"x,"\n",', b'"\n"'], ids=["plain", "stray quote", "line end in quotes"])
    def test_a_million_columns_end_no_process(self, tmp_path: Path, start: bytes) -> None:
        data = start + b"," * 900_000 + b"\n1,2,3\n"
        self.refused(tmp_path / "wide.csv", data, "more than 1024 columns", delimiter=",")

    def test_a_gzip_file_that_shrank_well_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "good.csv.gz"
        path.write_bytes(gzip.compress(b"1,2,3\n" * 100_000))
        assert len(read_ratings(path)) == 1

    def test_a_column_of_one_value_in_parquet_does_not_fill_the_memory(self, tmp_path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        same = np.zeros(1_000_000, dtype=np.int64)
        pq.write_table(pa.table({"user": same, "item": same, "rating": same}), tmp_path / "bomb.parquet")
        with pytest.raises(DataError, match=r"bomb\.parquet: .* expand to more than 100 times"):
            read_ratings(tmp_path / "bomb.parquet")

    def test_offsets_of_an_arrow_file_that_point_anywhere(self, tmp_path: Path) -> None:
        import pyarrow as pa

        labels = pa.array([["first"], ["second", "third"]])
        table = pa.table({"user": [1, 2], "item": [1, 2], "rating": [1.0, 2.0], "labels": labels})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        good = sink.getvalue().to_pybytes()
        offsets = b"".join(n.to_bytes(4, "little") for n in (0, 1, 3))
        assert good.count(offsets) == 1
        wrong = (-211413326).to_bytes(4, "little", signed=True)
        self.refused(
            tmp_path / "offsets.arrow", good.replace(offsets, wrong + offsets[4:]), "damaged .*negative offset"
        )

    @pytest.mark.parametrize("lists", [False, True], ids=["times", "lists of times"])
    def test_times_in_a_zone_that_is_unknown(self, tmp_path: Path, lists: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        times = pa.array([1_500_000_001, None, 1_600_000_000], pa.timestamp("ms", "Nowhere/Else"))
        column = pa.ListArray.from_arrays([0, 1, 2, 3], times) if lists else times
        path = tmp_path / "zone.parquet"
        pq.write_table(pa.table({"id": [1, 2, 3], "genre": ["a", "b", "a"], "added": column}), path)
        features = read_features(path, labels_needed=False)
        assert features.ignored["added"].startswith("is not read: ")
        if not lists:
            with pytest.raises(DataError, match=r"zone\.parquet, row 1, column added: user 'of type time"):
                read_pairs(path, user="added", item="id")
