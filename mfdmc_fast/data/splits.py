"""Splitting ratings into training and test parts.

No split puts a row into both parts, and train and test together are all rows, each part in the order of the source.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfdmc_fast.data.ratings import Ratings
from mfdmc_fast.data.readers import read_ratings
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.errors import ConfigError, DataError


class Split(NamedTuple):
    """A named pair of training and test ratings."""

    name: str
    train: Ratings
    test: Ratings


def holdout(ratings: Ratings, fraction: float, seed: int) -> Split:
    """Hold out a random part of the rows.

    Args:
        ratings: N ratings.
        fraction: share of the rows in the test part, above 0 and below 1; round(fraction * N) rows.
        seed: non-negative seed; equal seeds give equal splits.

    Raises:
        ConfigError: a wrong fraction or seed, or one that leaves a part without rows.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction must lie between 0 and 1, not {fraction!r}")
    n_test = round(fraction * len(ratings))
    if not 0 < n_test < len(ratings):
        raise ConfigError(f"fraction {fraction!r} of {len(ratings)} ratings leaves train or test empty")
    return _split("holdout", ratings, _rows(ratings, _generator(seed).permutation(len(ratings))[:n_test]))


def kfold(ratings: Ratings, k: int, seed: int) -> list[Split]:
    """Split into k random folds of sizes that differ by at most one; split "fold1" tests on the first, and so on.

    Raises:
        ConfigError: k is not an integer from 2 to the number of ratings, or a wrong seed.
    """
    if not isinstance(k, int | np.integer) or not 2 <= k <= len(ratings):
        raise ConfigError(f"k must be an integer from 2 to the number of ratings, {len(ratings)}, not {k!r}")
    folds = np.array_split(_generator(seed).permutation(len(ratings)), k)
    return [_split(f"fold{number}", ratings, _rows(ratings, fold)) for number, fold in enumerate(folds, start=1)]


def column_folds(ratings: Ratings, column: str) -> list[Split]:
    """One split per distinct value of a kept column, in ascending order, that tests on the rows with that value.

    Raises:
        DataError: the column was not kept, has missing values, or has fewer than two distinct values.
    """
    if column not in ratings.columns:
        known = ", ".join(map(repr, ratings.columns)) or "none"
        raise DataError(
            f"there is no column {column!r} to split by (kept columns: {known}); read the ratings with "
            f"keep=[{column!r}] (--keep {column})",
            source=ratings.source,
        )
    values = ratings.columns[column]
    if any(value is None or value != value for value in values.tolist()):
        raise DataError("a column to split by must not have missing values", source=ratings.source, column=column)
    distinct, folds = np.unique(values, return_inverse=True)
    if len(distinct) < 2:
        raise DataError("all rows have the same value, which leaves no split", source=ratings.source, column=column)
    return [_split(f"{column}={value}", ratings, folds == fold) for fold, value in enumerate(distinct.tolist())]


def official_folds(directory: str | os.PathLike[str], **read_options: Any) -> list[Split]:
    """The published folds of a directory: every pair NAME.base and NAME.test whose name ends in a digit.

    For MovieLens-100k these are u1 to u5; the pairs ua and ub, which are no folds, are left out.

    Args:
        directory: where the files are.
        read_options: options of `read_ratings`, for all the files.

    Raises:
        DataError: there is no such pair, or a file cannot be read.
    """
    folder = Path(directory)
    bases = [path for path in folder.glob("*.base") if path.stem[-1:].isdigit() and path.with_suffix(".test").exists()]
    if not bases:
        raise DataError(
            "no pairs NAME1.base and NAME1.test, as MovieLens-100k has them, in this directory", source=str(folder)
        )
    # u2 comes before u10.
    bases.sort(key=lambda path: (path.stem.rstrip("0123456789"), len(path.stem), path.stem))
    return [
        Split(path.stem, read_ratings(path, **read_options), read_ratings(path.with_suffix(".test"), **read_options))
        for path in bases
    ]


def leave_last_out(ratings: Ratings) -> Split:
    """Test on the latest rating of each user, of equal timestamps the one that comes last in the source.

    A user with a single rating stays in train.

    Raises:
        DataError: the ratings have no timestamps, or no user has two ratings.
    """
    if ratings.timestamps is None:
        raise DataError(
            "the latest ratings need timestamps; name a column of numbers with timestamp= (--timestamp)",
            source=ratings.source,
        )
    users = Vocabulary.from_values(ratings.users).encode(ratings.users)
    order = np.lexsort((ratings.timestamps, users))  # stable: ties stay in the order of the source
    last_of_user = np.append(np.flatnonzero(np.diff(users[order])), len(order) - 1)
    several = np.diff(last_of_user, prepend=-1) > 1
    if not several.any():
        raise DataError("no user has two ratings", source=ratings.source)
    return _split("leave-last-out", ratings, _rows(ratings, order[last_of_user[several]]))


def _generator(seed: int) -> np.random.Generator:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed must be a non-negative integer, not {seed!r}")
    return np.random.default_rng(seed)


def _rows(ratings: Ratings, indices: np.ndarray) -> np.ndarray:
    """Indices as a mask over the rows."""
    mask = np.zeros(len(ratings), dtype=bool)
    mask[indices] = True
    return mask


def _split(name: str, ratings: Ratings, in_test: np.ndarray) -> Split:
    return Split(name, ratings.take(~in_test), ratings.take(in_test))
