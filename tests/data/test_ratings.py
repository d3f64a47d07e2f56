"""The rules that hold for every source: ids, repeated pairs, options, and the checks of `Ratings` itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdmc_fast.data import Ratings, ReadReport, read_ratings
from mfdmc_fast.errors import ConfigError, DataError

TextFile = Callable[[str | bytes], Path]


@pytest.fixture
def text_file(tmp_path: Path) -> TextFile:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "ratings.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def triples(ratings: Ratings) -> list[tuple[Any, Any, float]]:
    return list(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True))


# ---- Ids ----


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "-7", "9223372036854775807"], [1, -7, 2**63 - 1]),
        (["1", "007", "3"], ["1", "007", "3"]),
        (["1", "+7", "3"], ["1", "+7", "3"]),
        (["1", "0x1F", "3"], ["1", "0x1F", "3"]),
        (["1", "2.0", "3"], ["1", "2.0", "3"]),
        (["1", "-0", "3"], ["1", "-0", "3"]),
        (["1", "9223372036854775808", "3"], ["1", "9223372036854775808", "3"]),
        (["A1", "ß", "naïve"], ["A1", "ß", "naïve"]),
    ],
)
def test_ids_are_integers_only_if_all_are_written_as_integers(
    text_file: TextFile, ids: list[str], expected: list[Any]
) -> None:
    from_text = read_ratings(text_file("".join(f"{name},{row},3\n" for row, name in enumerate(ids))))
    from_memory = read_ratings((ids, [0, 1, 2], [3, 3, 3]))
    for ratings in (from_text, from_memory):
        assert ratings.users.tolist() == expected
        assert ratings.users.dtype == (np.int64 if isinstance(expected[0], int) else np.object_)
        assert ratings.items.dtype == np.int64


def test_ids_of_numeric_columns() -> None:
    users = np.array([1.0, np.nan, 3.0, 1.5, 2.0**60])
    ratings = read_ratings((users, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), on_bad_row="skip")
    assert triples(ratings) == [(1, 1, 1.0), (3, 3, 3.0)]
    assert ratings.report.bad_rows_skipped == 3
    with pytest.raises(DataError, match=r"row 2, column 1: user 1.5 is neither an integer nor a string"):
        read_ratings(([1.0, 1.5], [1, 2], [3, 3]))
    large = np.array([1, 2**64 - 1], dtype=np.uint64)
    assert read_ratings((large, [1, 2], [3, 3])).users.tolist() == ["1", "18446744073709551615"]


@pytest.mark.parametrize("ids", [[True, False], [b"a", b"b"], [[1], [2]], [None, None]])
def test_ids_of_other_types_are_refused(ids: list[Any]) -> None:
    with pytest.raises(DataError, match=r"ids of type .* are not read|user None is missing"):
        read_ratings((ids, [1, 2], [3, 3]))


# ---- Repeats ----


REPEATED = "1,10,4,3\n2,10,5,1\n1,10,1,1\n2,20,2,1\n1,10,2,2\n"


def test_repeats_leave_the_last_row_in_order_of_the_source(text_file: TextFile) -> None:
    ratings = read_ratings(text_file(REPEATED))
    assert triples(ratings) == [(2, 10, 5.0), (2, 20, 2.0), (1, 10, 2.0)]
    assert ratings.timestamps is not None
    assert ratings.timestamps.tolist() == [1, 1, 2]
    assert ratings.report == ReadReport(rows=5, repeated_pairs=2)


def test_repeats_may_be_averaged_or_refused(text_file: TextFile) -> None:
    mean = read_ratings(text_file(REPEATED), on_repeat="mean")
    assert triples(mean) == [(2, 10, 5.0), (2, 20, 2.0), (1, 10, pytest.approx(7 / 3))]
    with pytest.raises(DataError, match="row 3: user 1 rates item 10 again, first in row 1; use on_repeat='last'"):
        read_ratings(text_file(REPEATED), on_repeat="error")


def test_repeats_are_found_among_bad_rows(text_file: TextFile) -> None:
    path = text_file("u,10,4\n\nu,11,x\nv,10,4\nu,10,1\n")
    with pytest.raises(DataError, match="row 5: user 'u' rates item 10 again, first in row 1"):
        read_ratings(path, on_repeat="error", on_bad_row="skip")


# ---- Options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_row": "ignore"}, "on_bad_row must be one of 'error', 'skip', not 'ignore'"),
        ({"on_repeat": "first"}, "on_repeat must be one of 'last', 'mean', 'error', not 'first'"),
        ({"user": 1.5}, "a column is given by its name or 0-based position, not by 1.5"),
        ({"keep": [True]}, "a column is given by its name or 0-based position, not by True"),
        ({"delimiter": ""}, "delimiter must be a string"),
        ({"delimiter": "\n"}, "delimiter must be a string"),
        ({"header": "yes"}, "header must be True, False or None"),
        ({"rating_scale": 5}, r"rating_scale must be \(lowest, highest\)"),
        ({"rating_scale": (1, 2, 3)}, r"rating_scale must be \(lowest, highest\)"),
        ({"rating_scale": (5, 1)}, "rating_scale must be two finite numbers"),
        ({"rating_scale": (1, float("inf"))}, "rating_scale must be two finite numbers"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ratings(([1], [2], [3]), **options)


# ---- Ratings ----


def test_ratings_validate_their_arrays() -> None:
    ids, values = np.array([1, 2]), np.array([3.0, 4.0])
    ratings = Ratings(ids, ids, values)
    assert len(ratings) == 2
    assert ratings.scale == (3.0, 4.0)
    assert ratings.report.as_dict()["on_repeat"] == "last"
    with pytest.raises(DataError, match="2 users but 1 items"):
        Ratings(ids, ids[:1], values)
    with pytest.raises(DataError, match="2 users but 1 column 'fold'"):
        Ratings(ids, ids, values, columns={"fold": ids[:1]})
    with pytest.raises(DataError, match="row 2, column rating: rating nan is not a finite number"):
        Ratings(ids, ids, np.array([1, np.nan]))
    with pytest.raises(DataError, match="users must have dtype int64 or object, not float64"):
        Ratings(values, ids, values)
    with pytest.raises(DataError, match="ratings must have dtype float64, not int64"):
        Ratings(ids, ids, ids)
    with pytest.raises(DataError, match="items must be a one-dimensional numpy array"):
        Ratings(ids, ids[None], values)
    with pytest.raises(DataError, match="no ratings"):
        _ = ratings.take(np.array([], dtype=int)).scale


def test_ratings_are_checked_again() -> None:
    ratings = read_ratings((["7", "8", "x"], [1, 2, 3], [1, 2, 3]))
    assert read_ratings(ratings) is ratings
    assert read_ratings(ratings.take(np.array([0, 1]))).users.tolist() == ["7", "8"]
    twice = ratings.take(np.array([0, 1, 0]))
    assert read_ratings(twice).users.tolist() == ["8", "7"]
    with pytest.raises(DataError, match="row 3: user '7' rates item 1 again, first in row 1"):
        read_ratings(twice, on_repeat="error")
    with pytest.raises(DataError, match=r"row 3, column rating: rating 3.0 is outside the rating scale 1\.\.2"):
        read_ratings(ratings, rating_scale=(1, 2))
    assert read_ratings(ratings, rating_scale=(1, 2), on_bad_row="skip").report.bad_rows_skipped == 1
    with pytest.raises(DataError, match="no ratings lie within"):
        read_ratings(ratings, rating_scale=(4, 5), on_bad_row="skip")
    with pytest.raises(DataError, match="ids must be all integers or all strings"):
        read_ratings(Ratings(np.array([1, "a"], dtype=object), ratings.items[:2], ratings.ratings[:2]))
