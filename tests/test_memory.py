"""Sizes, estimates, and the decision whether the ratings of a store stay on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfdmc_fast import MFDMC, BayesianMF, FunkMF, memory
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.data import RatingsDataset, Store, StreamedRatings, make_planted_ratings, prepare, read_ratings
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.memory import load_or_stream, parse_size, show_size, training_memory
from mfdmc_fast.ops import native
from mfdmc_fast.training import Callback, EpochRecord

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")

MiB = 2**20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ratings = make_planted_ratings(80, 50, 1900, seed=4)
    path = tmp_path_factory.mktemp("prepared") / "ratings.csv"
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True)
    path.write_text("".join(f"{u},{i},{r}\n" for u, i, r in rows))
    return path


@pytest.fixture(scope="module")
def store(text: Path) -> Store:
    return prepare(text, text.parent / "store")


@pytest.fixture(autouse=True)
def _resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda: 100 * MiB)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (5, 5),
        ("2147483648", 2**31),
        ("2GiB", 2**31),
        ("2 gib", 2**31),
        ("1.5GB", 1_500_000_000),
        ("800M", 800_000_000),
        ("3KiB", 3072),
        ("1TiB", 2**40),
        ("64Mi", 64 * MiB),
    ],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GiB", "2 parsecs", "-1GiB", "0", 0, -5, True, None, 1.5, "2GiBs", "i", "1e9"])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ConfigError, match="write a number of bytes, or with a unit"):
        parse_size(size)


def test_sizes_for_people() -> None:
    assert [show_size(n) for n in (3 * MiB, 2**31, 1.5 * 2**40)] == ["3 MiB", "2.00 GiB", "1536.00 GiB"]


def test_this_system_says_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    free, resident = memory.free_bytes(), memory.resident_bytes()
    assert free is not None
    assert free > 10 * MiB
    assert 10 * MiB < resident < 2**40


def test_estimates_grow_with_what_is_asked_for() -> None:
    small = training_memory(MFDMCConfig(), 1000, 500, 10**6)
    assert training_memory(MFDMCConfig(), 2000, 1000, 10**6).tables == 2 * small.tables
    assert training_memory(MFDMCConfig(optimizer="adagrad"), 1000, 500, 10**6).tables < small.tables
    assert training_memory(MFDMCConfig(keep="best"), 1000, 500, 10**6).tables > small.tables
    assert training_memory(MFDMCConfig(combine="sum"), 1000, 500, 10**6).tables < small.tables
    assert training_memory(FunkMFConfig(n_factors=4), 1000, 500, 10**6).tables < small.tables
    assert training_memory(MFDMCConfig(batch_size=1000), 1000, 500, 10**6).batch < small.batch
    assert small.ratings == 13 * 10**6
    assert small.streamed < small.loaded(10**6)


def test_ratings_stay_on_disk_where_they_must(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MFDMCConfig()
    needed = training_memory(config, store.n_users, store.n_items, len(store))
    enough = 100 * MiB + needed.loaded(len(store))
    assert isinstance(load_or_stream(store, config, enough), RatingsDataset)
    streamed = load_or_stream(store, config, enough - 1)
    assert isinstance(streamed, StreamedRatings)
    least = load_or_stream(store, config, 100 * MiB + needed.streamed)
    assert isinstance(least, StreamedRatings)
    assert least.dealt_at_once <= streamed.dealt_at_once <= len(store)
    # without a limit what is free decides, and nothing is refused
    for free, kind in ((None, RatingsDataset), (2**40, RatingsDataset), (MiB, StreamedRatings)):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        assert isinstance(load_or_stream(store, config, None), kind)


def test_limits_that_are_too_low_say_what_would_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"needs about 1\d\d MiB, .* the memory limit is 120 MiB\. Raise it, or"):
        load_or_stream(store, MFDMCConfig(), 120 * MiB)
    # a large store: a smaller batch would do
    monkeypatch.setattr(Store, "__len__", lambda self: 10**9)
    with pytest.raises(ConfigError, match=r"or batches of at most ([\d,]+) ratings \(batch_size\)") as caught:
        load_or_stream(store, MFDMCConfig(), 1000 * MiB)
    batch_size = int(str(caught.value).partition("at most ")[2].partition(" ")[0].replace(",", ""))
    needed = training_memory(MFDMCConfig(batch_size=batch_size), store.n_users, store.n_items, 10**9)
    assert needed.streamed + 100 * MiB <= 1000 * MiB


@pytest.mark.parametrize("estimator", [MFDMC, FunkMF])
def test_fit_is_the_same_from_file_store_and_disk(
    estimator: Any, text: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = estimator(epochs=3, seed=2).fit(text)
    needed = training_memory(expected.model_.config, store.n_users, store.n_items, len(store))
    limit = 100 * MiB + needed.streamed
    watched = read_ratings(text)
    for source, options in (
        (store, {}),
        (str(store.path), {}),
        (store.path, {"memory_limit": limit}),
        (store, {"memory_limit": str(limit), "validation": watched, "rating_scale": store.scale}),
    ):
        model = estimator(epochs=3, seed=2).fit(source, **options)
        assert model.history_.streamed == ("memory_limit" in options)
        assert model.rating_scale_ == expected.rating_scale_
        pairs = zip(model.model_.parameters(), expected.model_.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        model.save(tmp_path / "model")
        loaded = estimator.load(tmp_path / "model")
        for user in expected.users_.ids[:5].tolist():
            assert loaded.recommend(user, 4).items.tolist() == expected.recommend(user, 4).items.tolist()


def test_a_run_from_disk_is_resumed_in_memory(store: Store, tmp_path: Path) -> None:
    class Interrupted(Callback):
        def on_epoch_end(self, record: EpochRecord, model: Any) -> None:
            if record.epoch == 3:
                raise KeyboardInterrupt

    settings: dict[str, Any] = {"epochs": 5, "seed": 2}
    expected = MFDMC(**settings).fit(store)
    limit = 100 * MiB + training_memory(expected.model_.config, store.n_users, store.n_items, len(store)).streamed
    checkpoints: dict[str, Any] = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        MFDMC(**settings).fit(store, memory_limit=limit, callbacks=[Interrupted()], **checkpoints)
    model = MFDMC(**settings).fit(store, **checkpoints, resume=True)
    assert model.history_.streamed  # its first epochs were
    assert all(torch.equal(a, b) for a, b in zip(model.model_.parameters(), expected.model_.parameters(), strict=True))


def test_fit_refuses_limits_that_it_cannot_keep(text: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="memory_limit is for a store that mfdmc prepare wrote"):
        FunkMF(epochs=1).fit(text, memory_limit="2GiB")
    with pytest.raises(ConfigError, match="memory_limit is for a store"):
        FunkMF(epochs=1, validation_fraction=0.1).fit(store, memory_limit="2GiB")
    for model in (
        BayesianMF(sweeps=2, burn_in=1, n_draws=1),
        MFDMC(teacher=BayesianMF(sweeps=2, burn_in=1, n_draws=1)),
    ):
        with pytest.raises(ConfigError, match=r"memory_limit: .* needs all ratings in memory; leave it out"):
            model.fit(store, memory_limit="2GiB")
    with pytest.raises(ConfigError, match="memory limit 'much'"):
        FunkMF(epochs=1).fit(store, memory_limit="much")
    with pytest.raises(DataError, match=r"outside the rating scale 2\.\.3; prepare it with that scale"):
        FunkMF(epochs=1).fit(store, rating_scale=(2, 3))


def test_estimators_that_need_all_ratings_load_them(text: Path, store: Store) -> None:
    expected, model = (
        BayesianMF(rank=3, sweeps=4, burn_in=1, n_draws=2, seed=1).fit(source) for source in (text, store)
    )
    np.testing.assert_array_equal(model.predict([1, 2, 3], [4, 5, 6]), expected.predict([1, 2, 3], [4, 5, 6]))
    split = [FunkMF(epochs=2, validation_fraction=0.2, seed=1).fit(store) for _ in range(2)]
    assert split[0].history_.epochs[-1].valid_rmse == split[1].history_.epochs[-1].valid_rmse


def test_a_store_that_is_damaged_is_not_trained_on(text: Path, tmp_path: Path) -> None:
    store = prepare(text, tmp_path / "store")
    data = bytearray(store.item_path.read_bytes())
    data[77] ^= 1
    store.item_path.write_bytes(data)
    needed = training_memory(MFDMCConfig(), store.n_users, store.n_items, len(store))
    for limit in (None, 100 * MiB + needed.streamed):
        with pytest.raises(DataError, match=r"items\.i32: damaged: its checksum is wrong"):
            MFDMC(epochs=1).fit(store, memory_limit=limit)
