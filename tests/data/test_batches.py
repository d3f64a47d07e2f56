"""Batches: every rating once, equal shares of every user, grouping, and content fixed by seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdmc_fast.data import Batch, BatchIterator, RatingsDataset, Vocabulary
from mfdmc_fast.data.batches import deal, default_batch_size
from mfdmc_fast.errors import ConfigError, DataError


def make_dataset(n_ratings: int, n_users: int = 7, n_items: int = 9, seed: int = 0) -> RatingsDataset:
    """Random ratings, repeated pairs among them; the rating tells the row apart."""
    rng = np.random.default_rng(seed)
    return RatingsDataset(
        rng.integers(n_users, size=n_ratings),
        rng.integers(n_items, size=n_ratings),
        rng.permutation(n_ratings).astype(np.float32),
        Vocabulary(range(n_users)),
        Vocabulary(range(n_items)),
    )


def _triples(batches: list[Batch]) -> list[tuple[int, int, float]]:
    return [triple for batch in batches for triple in zip(*(t.tolist() for t in batch), strict=True)]


def _equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


@settings(max_examples=50, deadline=None)
@given(n_ratings=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**63 - 1))
def test_every_rating_once_in_batches_of_even_size(n_ratings: int, batch_size: int, seed: int) -> None:
    dataset = make_dataset(n_ratings)
    iterator = BatchIterator(dataset, batch_size, seed)
    batches = list(iterator.epoch(1))
    assert len(batches) == iterator.n_batches == -(-n_ratings // batch_size)
    sizes = [len(batch.ratings) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    wanted = zip(*(a.tolist() for a in (dataset.user_idx, dataset.item_idx, dataset.ratings)), strict=True)
    assert sorted(_triples(batches)) == sorted(wanted)


def test_dtypes_and_grouping_inside_a_batch() -> None:
    for batch in BatchIterator(make_dataset(200), 64, seed=3).epoch(1):
        assert (batch.user_idx.dtype, batch.item_idx.dtype) == (torch.int64, torch.int64)
        assert batch.ratings.dtype == torch.float32
        pairs = list(zip(batch.user_idx.tolist(), batch.item_idx.tolist(), strict=True))
        assert pairs == sorted(pairs)
        assert len(set(batch.user_idx.tolist())) == 7  # drawn from all users, not a slice of the sorted ratings


def test_seed_and_epoch_alone_fix_the_batches() -> None:
    dataset = make_dataset(100)
    fresh = list(BatchIterator(dataset, 30, seed=5).epoch(3))
    used = BatchIterator(dataset, 30, seed=5)
    for epoch in (1, 2):
        list(used.epoch(epoch))
    next(used.epoch(7))
    assert _equal(list(used.epoch(3)), fresh)
    assert _equal(list(used.epoch(3)), fresh)


@pytest.mark.parametrize(("seed", "epoch"), [(5, 2), (6, 1)], ids=["other-epoch", "other-seed"])
def test_other_seeds_and_epochs_give_other_batches(seed: int, epoch: int) -> None:
    dataset = make_dataset(100)
    first = list(BatchIterator(dataset, 30, seed=5).epoch(1))
    assert not _equal(list(BatchIterator(dataset, 30, seed=seed).epoch(epoch)), first)


def test_the_order_of_the_ratings_does_not_change_the_batches() -> None:
    # without repeated pairs, sorting undoes any order
    users, items = (a.ravel() for a in np.meshgrid(np.arange(7), np.arange(9), indexing="ij"))
    vocabularies = Vocabulary(range(7)), Vocabulary(range(9))
    dataset = RatingsDataset(users, items, np.arange(63, dtype=np.float32), *vocabularies)
    shuffled = dataset.take(np.random.default_rng(0).permutation(63))
    assert _equal(*(list(BatchIterator(d, 20, seed=1).epoch(1)) for d in (dataset, shuffled)))


@pytest.mark.parametrize("batch_size", [37, 128, 500])
def test_every_batch_has_an_equal_share_of_every_user(batch_size: int) -> None:
    dataset = make_dataset(1000)
    shares = [np.bincount(batch.user_idx, minlength=7) for batch in BatchIterator(dataset, batch_size, 0).epoch(1)]
    # a user's ratings begin and end inside a run, so two of them may fall to one batch and none to another
    assert np.ptp(shares, axis=0).max() <= 2
    assert np.ptp(shares, axis=0).any()


MASK = 2**64 - 1


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _dealt_by_hand(n_ratings: int, n_batches: int, seed: int, epoch: int) -> list[list[int]]:
    """The documented rule in plain integers, one rating after the other."""
    golden = 0x9E3779B97F4A7C15
    stream = _mix((_mix((seed + golden) & MASK) + epoch) & MASK)
    dealt = []
    for run in range(-(-n_ratings // n_batches)):
        permutation = list(range(n_batches))
        for k in range(n_batches):
            high = _mix((stream + (run * n_batches + k + 1) * golden) & MASK) >> 32
            j = high * (k + 1) >> 32
            permutation[k], permutation[j] = permutation[j], k
        dealt.append(permutation)
    return dealt


@settings(max_examples=50, deadline=None)
@given(
    n_ratings=st.integers(1, 50),
    n_batches=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(1, 1000),
)
def test_deal_follows_its_rule(n_ratings: int, n_batches: int, seed: int, epoch: int) -> None:
    dealt = deal(n_ratings, n_batches, seed, epoch)
    assert dealt.tolist() == _dealt_by_hand(n_ratings, n_batches, seed, epoch)
    assert (np.sort(dealt, axis=1) == np.arange(n_batches)).all()


def test_every_permutation_is_equally_likely() -> None:
    runs = 12_000
    for seed, epoch in ((0, 1), (0, 2), (1, 1)):
        dealt = deal(3 * runs, 3, seed, epoch)
        _, counts = np.unique(dealt @ np.array([9, 3, 1]), return_counts=True)
        # 2000 of each of the six, with a standard deviation of 41
        assert len(counts) == 6
        assert np.abs(counts - 2000).max() < 5 * 41
        # and one run says nothing of the next
        assert abs(np.corrcoef(dealt[:-1, 0], dealt[1:, 0])[0, 1]) < 5 / runs**0.5


def test_the_batches_share_no_memory_with_the_dataset() -> None:
    dataset = make_dataset(20)
    before = dataset.ratings.copy()
    for batch in BatchIterator(dataset, None, seed=0).epoch(1):
        batch.ratings.zero_()
        batch.user_idx.zero_()
    assert np.array_equal(dataset.ratings, before)
    assert dataset.user_idx.any()


def test_default_size_is_used() -> None:
    iterator = BatchIterator(make_dataset(2500), None, seed=0)
    assert iterator.batch_size == 1024
    assert iterator.n_batches == 3


@pytest.mark.parametrize(
    ("n_ratings", "size"),
    [
        (0, 1024),
        (1, 1024),
        (14_000, 1024),
        (15_000, 2048),
        (80_000, 8192),
        (90_570, 8192),
        (800_000, 65_536),
        (20_000_000, 1 << 21),
    ],
)
def test_default_batch_size(n_ratings: int, size: int) -> None:
    assert default_batch_size(n_ratings) == size


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size = {batch_size}: must be 1 or more"):
        BatchIterator(make_dataset(10), batch_size, seed=0)


def test_no_ratings_are_refused() -> None:
    with pytest.raises(DataError, match="there are no ratings to train on"):
        BatchIterator(make_dataset(10).take(np.arange(0)), None, seed=0)


def test_unknown_ids_are_refused_and_counted() -> None:
    dataset = make_dataset(10)
    dataset.user_idx[[2, 5]] = -1
    dataset.item_idx[[5, 7]] = -1
    with pytest.raises(DataError, match="3 ratings have ids that are not in the vocabularies"):
        BatchIterator(dataset, None, seed=0)
