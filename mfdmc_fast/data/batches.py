"""Seeded batches of encoded ratings, grouped by user so that kernels can work once per entity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.errors import ConfigError, DataError


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

    Epoch e of seed s is the same whatever was iterated before, so a run can be continued at any epoch.

    Args:
        dataset: encoded ratings without unknown ids.
        batch_size: upper bound of ratings per batch, or None for `default_batch_size`.
        seed: 0 or more.
        device: where the batches go.

    Raises:
        DataError: no ratings, or ids that are not in the vocabularies.
    """

    def __init__(self, dataset: RatingsDataset, batch_size: int | None, seed: int, device: str = "cpu") -> None:
        if len(dataset) == 0:
            raise DataError("there are no ratings to train on")
        if not dataset.known.all():
            raise DataError(f"{int((~dataset.known).sum())} ratings have ids that are not in the vocabularies")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be 1 or more")
        self.dataset = dataset
        self.seed = seed
        self.device = device
        self.batch_size = batch_size or default_batch_size(len(dataset))
        self.n_batches = -(-len(dataset) // self.batch_size)
        # positions in this order are one key by which a batch is grouped
        self._order = np.lexsort((dataset.item_idx, dataset.user_idx))

    def epoch(self, number: int) -> Iterator[Batch]:
        """Batches of one epoch; `number` and the seed fix their content and order."""
        shuffled = np.random.default_rng([self.seed, number]).permutation(len(self._order))
        for part in np.array_split(shuffled, self.n_batches):
            rows = self._order[np.sort(part)]
            yield Batch(
                torch.from_numpy(self.dataset.user_idx[rows]).to(self.device),
                torch.from_numpy(self.dataset.item_idx[rows]).to(self.device),
                torch.from_numpy(self.dataset.ratings[rows]).to(self.device),
            )


def default_batch_size(n_ratings: int) -> int:
    """The power of two nearest (in ratio) to n_ratings / 20, at least 1,024.

    About 20 steps an epoch whatever the size of the data, which is what the default learning rates were chosen for.
    """
    exponent = round(math.log2(max(n_ratings, 1) / 20))
    return max(1024, 1 << max(exponent, 0))
