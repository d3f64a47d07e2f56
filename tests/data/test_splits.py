"""Every split keeps train and test apart and loses nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfdmc_fast.data import (
    Ratings,
    Split,
    column_folds,
    holdout,
    kfold,
    leave_last_out,
    official_folds,
    read_ratings,
)
from mfdmc_fast.errors import ConfigError, DataError

DATA = Path(os.environ.get("MFDMC_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def make(n: int, **columns: Any) -> Ratings:
    """n ratings; the rating is the row number, which identifies the row in the parts of a split."""
    kept = {name: np.asarray(values) for name, values in columns.items()}
    return Ratings(np.arange(n) % 3, np.arange(n), np.arange(n, dtype=float), columns=kept)


def rows(ratings: Ratings) -> list[int]:
    return ratings.ratings.astype(int).tolist()


def check(split: Split, n: int) -> None:
    train, test = rows(split.train), rows(split.test)
    assert sorted(train + test) == list(range(n))
    assert train == sorted(train)
    assert test == sorted(test)
    assert train
    assert test


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_holdout(n: int, fraction: float, seed: int) -> None:
    ratings = make(n)
    if not 0 < round(fraction * n) < n:
        with pytest.raises(ConfigError, match="leaves train or test empty"):
            holdout(ratings, fraction, seed)
        return
    split = holdout(ratings, fraction, seed)
    check(split, n)
    assert split.name == "holdout"
    assert len(split.test) == round(fraction * n)
    assert rows(holdout(ratings, fraction, seed).test) == rows(split.test)


@given(st.integers(2, 60), st.data(), st.integers(0, 2**32))
def test_kfold(n: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(2, n))
    splits = kfold(make(n), k, seed)
    for split in splits:
        check(split, n)
    assert [split.name for split in splits] == [f"fold{number}" for number in range(1, k + 1)]
    assert sorted(row for split in splits for row in rows(split.test)) == list(range(n))
    sizes = {len(split.test) for split in splits}
    assert max(sizes) - min(sizes) <= 1
    assert [rows(split.test) for split in kfold(make(n), k, seed)] == [rows(split.test) for split in splits]


def test_seeds_differ() -> None:
    assert rows(holdout(make(100), 0.5, 0).test) != rows(holdout(make(100), 0.5, 1).test)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_refuses_fractions(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction must lie between 0 and 1"):
        holdout(make(10), fraction, 0)


@pytest.mark.parametrize("k", [1, 0, -2, 11, 2.5, "3"])
def test_kfold_refuses_counts(k: Any) -> None:
    with pytest.raises(ConfigError, match="k must be an integer from 2 to the number of ratings, 10"):
        kfold(make(10), k, 0)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_seeds_are_checked(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be a non-negative integer"):
        kfold(make(10), 2, seed)
    with pytest.raises(ConfigError, match="seed must be a non-negative integer"):
        holdout(make(10), 0.5, seed)


@pytest.mark.parametrize(
    ("values", "names", "tests"),
    [
        ([10, 9, 10, 9, 2], ["f=2", "f=9", "f=10"], [[4], [1, 3], [0, 2]]),
        ([True, False, False, True, False], ["f=False", "f=True"], [[1, 2, 4], [0, 3]]),
        (np.array(["b", "a", "b", "b", "a"], dtype=object), ["f=a", "f=b"], [[1, 4], [0, 2, 3]]),
    ],
)
def test_column_folds(values: Any, names: list[str], tests: list[list[int]]) -> None:
    splits = column_folds(make(5, f=values), "f")
    assert [split.name for split in splits] == names
    assert [rows(split.test) for split in splits] == tests
    for split in splits:
        check(split, 5)


def test_column_folds_refuse_columns() -> None:
    with pytest.raises(DataError, match=r"no column 'fold' .*kept columns: 'f'.* keep=\['fold'\] \(--keep fold\)"):
        column_folds(make(3, f=[1, 2, 3]), "fold")
    with pytest.raises(DataError, match="column f: all rows have the same value"):
        column_folds(make(3, f=[1, 1, 1]), "f")
    for values in ([1.0, np.nan, 2.0], np.array(["a", None, "b"], dtype=object)):
        with pytest.raises(DataError, match="column f: a column to split by must not have missing values"):
            column_folds(make(3, f=values), "f")


def test_official_folds(tmp_path: Path) -> None:
    for name in ("u10", "u2", "u1", "ua", "u3"):
        (tmp_path / f"{name}.base").write_text("1\t2\t3\n1\t3\t4\n")
        if name != "u3":
            (tmp_path / f"{name}.test").write_text("2\t2\t3\n2\t2\t1\n")
    splits = official_folds(tmp_path, on_repeat="mean")
    assert [split.name for split in splits] == ["u1", "u2", "u10"]
    assert splits[0].train.ratings.tolist() == [3.0, 4.0]
    assert splits[0].test.ratings.tolist() == [2.0]


def test_official_folds_are_missing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"no pairs NAME1\.base and NAME1\.test"):
            official_folds(folder)


def test_leave_last_out_takes_the_latest_rating_of_each_user() -> None:
    users = ["a", "b", "a", "c", "b", "a"]
    times = [5, 2, 9, 1, 2, 3]
    ratings = read_ratings((users, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], times))
    split = leave_last_out(ratings)
    check(split, 6)
    assert split.name == "leave-last-out"
    assert rows(split.test) == [2, 4]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_leave_last_out_agrees_with_a_loop(events: list[tuple[int, int]]) -> None:
    n = len(events)
    users, times = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    ratings = Ratings(users, np.arange(n), np.arange(n, dtype=float), timestamps=times)
    latest = {
        user: max(row for row in range(n) if events[row] == (user, max(t for u, t in events if u == user)))
        for user in set(users.tolist())
        if (users == user).sum() > 1
    }
    if not latest:
        with pytest.raises(DataError, match="no user has two ratings"):
            leave_last_out(ratings)
        return
    split = leave_last_out(ratings)
    check(split, n)
    assert rows(split.test) == sorted(latest.values())


def test_leave_last_out_needs_timestamps() -> None:
    with pytest.raises(DataError, match=r"need timestamps; name a column of numbers with timestamp= \(--timestamp\)"):
        leave_last_out(make(5))


@pytest.mark.data
def test_official_folds_of_movielens() -> None:
    if not (DATA / "ml-100k").exists():
        pytest.skip(f"ml-100k is not in MFDMC_DATA ({DATA})")
    splits = official_folds(DATA / "ml-100k")
    assert [split.name for split in splits] == ["u1", "u2", "u3", "u4", "u5"]
    for split in splits:
        assert (len(split.train), len(split.test)) == (80_000, 20_000)
        pairs = [np.stack([part.users, part.items], axis=1) for part in (split.train, split.test)]
        assert len(np.unique(np.concatenate(pairs), axis=0)) == 100_000
