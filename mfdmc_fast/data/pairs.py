"""Which (user, item) pairs a teacher is asked about: pairs as likely as new ratings are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.blocks import BLOCK, blocks, count_rows
from mfdmc_fast.data.dataset import RatingsDataset


def sample_pairs(
    train: RatingsDataset, n_pairs: int, smoothing: float, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Draw pairs in proportion to (ratings of the user + smoothing) * (ratings of the item + smoothing).

    Args:
        train: encoded ratings without unknown ids.
        n_pairs: how many, P; a pair may come several times.
        smoothing: ratings that everybody is taken to have more, above 0.
        seed: equal seeds give equal pairs.

    Returns:
        [P] int32 rows of users, ascending, and [P] of items.
    """
    generator = np.random.default_rng(seed)
    user_share, item_share = (
        counts / counts.sum()
        for counts in (
            count_rows(train.user_idx, len(train.users)) + smoothing,
            count_rows(train.item_idx, len(train.items)) + smoothing,
        )
    )
    per_user = generator.multinomial(n_pairs, user_share)
    users = np.repeat(np.arange(len(train.users), dtype=np.int32), per_user)
    steps = np.cumsum(item_share)
    items = np.empty(n_pairs, dtype=np.int32)
    for block in blocks(n_pairs, BLOCK):
        drawn = np.searchsorted(steps, generator.random(block.stop - block.start), side="right")
        items[block] = np.minimum(drawn, len(steps) - 1)  # the last sum may fall short of 1
    return users, items
