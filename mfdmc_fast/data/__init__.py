"""Ratings: reading, splitting, ids and synthetic data."""

from mfdmc_fast.data.batches import Batch, BatchIterator
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.features import Features, read_features
from mfdmc_fast.data.ingest import PrepareProgress, prepare
from mfdmc_fast.data.ratings import Ratings, ReadReport
from mfdmc_fast.data.readers import read_pairs, read_ratings
from mfdmc_fast.data.splits import Split, column_folds, holdout, kfold, leave_last_out, official_folds
from mfdmc_fast.data.store import Store, StreamedRatings
from mfdmc_fast.data.synthetic import PlantedRatings, make_planted_ratings, plant_ratings
from mfdmc_fast.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "BatchIterator",
    "Features",
    "PlantedRatings",
    "PrepareProgress",
    "Ratings",
    "RatingsDataset",
    "ReadReport",
    "Split",
    "Store",
    "StreamedRatings",
    "Vocabulary",
    "column_folds",
    "holdout",
    "kfold",
    "leave_last_out",
    "make_planted_ratings",
    "official_folds",
    "plant_ratings",
    "prepare",
    "read_features",
    "read_pairs",
    "read_ratings",
]
