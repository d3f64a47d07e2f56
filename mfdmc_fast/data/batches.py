"""Seeded batches of encoded ratings, grouped by user so that kernels can work once per entity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import StreamedRatings
from mfdmc_fast.errors import ConfigError, DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Batch(NamedTuple):
    """B ratings; `user_idx` ascends, and `item_idx` ascends within a user.

    Attributes:
        user_idx: [B] int64.
        item_idx: [B] int64.
        ratings: [B] float32, rating points.
    """

    user_idx: Tensor
    item_idx: Tensor
    ratings: Tensor


class BatchIterator:
    """Every rating once per epoch, in seeded random batches whose sizes differ by at most one.

    With n batches, the ratings in (user, item) order are cut into runs of n, and each run is dealt out to the batches,
    one rating each, by a random permutation (`deal`). So a batch comes out grouped by user without sorting, and holds
    an equal share of every user's ratings, which shuffling gives only on average. Epoch e of seed s is the same
    whatever was iterated before, so a run can be continued at any epoch.

    Attributes:
        dataset: the ratings in (user, item) order.
        n_batches: batches of an epoch.

    Args:
        dataset: encoded ratings without unknown ids; sorted ones are not copied. Streamed ones are for the native
            engine, which deals for itself.
        batch_size: upper bound of ratings per batch, or None for `default_batch_size`.
        seed: 0 or more.
        device: where the batches go.

    Raises:
        DataError: no ratings, or ids that are not in the vocabularies.
    """

    def __init__(
        self, dataset: RatingsDataset | StreamedRatings, batch_size: int | None, seed: int, device: str = "cpu"
    ) -> None:
        if len(dataset) == 0:
            raise DataError("there are no ratings to train on")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be 1 or more")
        self.dataset: RatingsDataset | StreamedRatings = dataset.sorted()
        self.seed = seed
        self.device = device
        self.batch_size = batch_size or default_batch_size(len(dataset))
        self.n_batches = -(-len(dataset) // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Batches of one epoch; `number` and the seed fix their content and order."""
        dataset = self.dataset
        assert isinstance(dataset, RatingsDataset)
        n_ratings = len(dataset)
        dealt = deal(n_ratings, self.n_batches, self.seed, number)
        starts = np.arange(len(dealt)) * self.n_batches
        for batch in range(self.n_batches):
            positions = starts + dealt[:, batch]
            rows = positions[positions < n_ratings]
            yield Batch(
                torch.from_numpy(dataset.user_idx[rows]).to(self.device, torch.int64),
                torch.from_numpy(dataset.item_idx[rows]).to(self.device, torch.int64),
                torch.from_numpy(dataset.ratings[rows]).to(self.device),
            )


def deal(n_ratings: int, n_batches: int, seed: int, epoch: int, runs: range | None = None) -> npt.NDArray[np.int64]:
    """Which rating of each run goes to which batch.

    Every run has a permutation of its own by Fisher and Yates, with a hash of (seed, epoch, position) as the source of
    random numbers, so that any part of an epoch can be computed by itself, in any language.

    Args:
        n_ratings, n_batches: of an epoch.
        seed, epoch: what the permutations depend on.
        runs: which are wanted; None: all.

    Returns:
        [runs, n_batches] int64: rating `run * n_batches + result[run, batch]` goes to `batch`; in the last run that may
        be past the end, then the batch gets none.
    """
    wanted = np.array(range(-(-n_ratings // n_batches)) if runs is None else runs, dtype=np.int64)
    permutation = np.zeros((len(wanted), n_batches), dtype=np.int64)
    stream = deal_stream(seed, np.array([epoch]))
    every = np.arange(len(wanted))
    for k in range(n_batches):
        counter = (wanted * n_batches + (k + 1)).astype(np.uint64)
        high = _mix(stream + counter * _GOLDEN) >> np.uint64(32)
        j = ((high * np.uint64(k + 1)) >> np.uint64(32)).astype(np.int64)  # uniform in 0 … k
        permutation[:, k] = permutation[every, j]
        permutation[every, j] = k
    return permutation


def deal_stream(seed: int, epochs: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Where the random numbers of `deal` begin in each of [E] epochs: the k-th number of position p of a run of n is
    mixed from this + (run * n + k + 1) * the golden ratio of SplitMix64.
    """
    return _mix(_mix(np.array([seed], dtype=np.uint64) + _GOLDEN) + epochs.astype(np.uint64))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def default_batch_size(n_ratings: int, n_batches: int = 10) -> int:
    """The power of two nearest (in ratio) to n_ratings / n_batches, at least 1,024.

    So an epoch has about as many steps whatever the size of the data, which is what the default learning rates were
    chosen for. More steps cost time in proportion, as every one of them changes almost every row.
    """
    exponent = round(math.log2(max(n_ratings, 1) / n_batches))
    return max(1024, 1 << max(exponent, 0))
