"""The datasets of the accuracy suite: their folds, rating scales, and which ratings count as relevant in a ranking.

MovieLens-100k has its official folds u1 to u5; MovieLens-1M the columns `fold` (five folds) and `probe` (one split,
90 : 10) of the dataset copy. All others are cut into five random folds with a fixed seed. `read_ratings` leaves one
rating of every repeated pair, the last one, before anything is split.

The thresholds of relevance: 4 and more of 5 stars; 3.5 and more of filmtrust's 4; 5 and more in Jester, whose ratings
are real numbers from -10 to 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mfdmc_fast.data import (
    Ratings,
    Split,
    column_folds,
    holdout,
    kfold,
    make_planted_ratings,
    official_folds,
    read_ratings,
)
from mfdmc_fast.testing import data_folder

SPLIT_SEED = 0
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    Attributes:
        name: on the command line and in results.
        scale: lowest and highest possible rating; predictions of every model are clipped to it.
        relevant_from: test ratings of this and more count as relevant.
        folds: how many there are.
        default_folds: how many of them run where nothing else is asked for.
        load: folder of all datasets → the splits.
        needs: path below that folder, or "" for generated ratings.
        small: little enough for models that take seconds per thousand ratings.
    """

    name: str
    scale: tuple[float, float]
    relevant_from: float
    folds: int
    default_folds: int
    load: Callable[[Path], list[Split]]
    needs: str
    small: bool = False

    def is_there(self) -> bool:
        """Whether its files are."""
        folder = data_folder()
        return not self.needs or (folder is not None and (folder / self.needs).exists())

    def split(self, fold: int) -> Split:
        """The split with this number, from 0 on."""
        return self.load(data_folder() or Path())[fold]

    def validation(self) -> Split:
        """The one on which settings are sought: a tenth of the training part of the first fold, held out."""
        return holdout(self.split(0).train, VALIDATION_SHARE, SPLIT_SEED)


def _random_folds(path: str) -> Callable[[Path], list[Split]]:
    return lambda folder: kfold(read_ratings(folder / path), 5, SPLIT_SEED)


def _ml_1m(column: str) -> list[Split]:
    folder = data_folder()
    assert folder is not None
    return column_folds(read_ratings(folder / "ml-1m" / "ratings.parquet", keep=(column,)), column)


def _planted() -> Ratings:
    return make_planted_ratings(300, 200, 12_000, seed=1)


DATASETS: dict[str, Dataset] = {
    d.name: d
    for d in (
        Dataset(
            "ml-100k", (1, 5), 4, 5, 5, lambda folder: official_folds(folder / "ml-100k"), "ml-100k/u1.base", small=True
        ),
        Dataset("ml-1m", (1, 5), 4, 5, 1, lambda _: _ml_1m("fold"), "ml-1m/ratings.parquet"),
        # the split that tests on the rows with probe = True is the second
        Dataset("ml-1m-probe", (1, 5), 4, 1, 1, lambda _: _ml_1m("probe")[1:], "ml-1m/ratings.parquet"),
        Dataset("amazon-hin", (1, 5), 4, 5, 5, _random_folds("amazon-hin/ratings.parquet"), "amazon-hin", small=True),
        Dataset("epinions", (1, 5), 4, 5, 5, _random_folds("epinions/ratings.parquet"), "epinions"),
        Dataset(
            "goodbooks-10k-v1", (1, 5), 4, 5, 5, _random_folds("goodbooks-10k-v1/ratings.parquet"), "goodbooks-10k-v1"
        ),
        Dataset("jester-1", (-10, 10), 5, 5, 5, _random_folds("jester-1/ratings.parquet"), "jester-1"),
        Dataset("filmtrust", (0.5, 4), 3.5, 5, 5, _random_folds("filmtrust/ratings.txt"), "filmtrust", small=True),
        Dataset("planted", (1, 5), 4, 5, 5, lambda _: kfold(_planted(), 5, SPLIT_SEED), "", small=True),
    )
}
