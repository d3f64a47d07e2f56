"""Both ways of running epochs take the same steps, pruning and every setting of the engine included."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from epoch_cases import CONFIGS, assert_same_run, new_model, trained

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.data import (
    BatchIterator,
    Ratings,
    RatingsDataset,
    Store,
    StreamedRatings,
    make_planted_ratings,
    prepare,
)
from mfdmc_fast.epochs import NativeEpochs, TorchEpochs, make_epochs
from mfdmc_fast.errors import ConfigError, TrainingDiverged
from mfdmc_fast.ops import native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")

native_trainer = native.Trainer
KERNELS = ["baseline", "avx2", "avx512"]


@pytest.fixture(scope="module")
def data() -> RatingsDataset:
    return RatingsDataset.from_ratings(make_planted_ratings(60, 45, 1300, seed=5))


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_engine_follows_the_reference(
    name: str, kernels: str, data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need(kernels)
    monkeypatch.setenv("MFDMC_CPU_KERNELS", kernels)
    expected, mine = (trained(CONFIGS[name], data, backend=backend) for backend in ("reference", "cpu"))
    assert (expected[1].backend, mine[1].backend) == ("reference", "cpu")
    if name in ("concat", "adagrad"):
        assert mine[1].prune_events
    assert_same_run(mine, expected)


@pytest.mark.parametrize("name", ["concat", "sum", "adagrad", "funkmf"])
def test_the_number_of_threads_does_not_change_the_bits(name: str) -> None:
    # large enough for every pass to be shared out
    data = RatingsDataset.from_ratings(make_planted_ratings(700, 400, 12_000, seed=6))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        model, history = trained(CONFIGS[name], data, backend="cpu", batch_size=5000)
        results.append((list(model.parameters()), [record.loss for record in history.epochs]))
    for parameters, losses in results[1:]:
        assert losses == results[0][1]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][0], strict=True))


def test_dealing_a_part_of_an_epoch_at_a_time_changes_nothing(
    data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = trained(CONFIGS["small-batches"], data, backend="cpu")
    for at_once in (1, 37 * 7):
        monkeypatch.setattr(native, "Trainer", partial(native_trainer, dealt_at_once=at_once))
        parts, parts_history = trained(CONFIGS["small-batches"], data, backend="cpu")
        assert [e.loss for e in parts_history.epochs] == [e.loss for e in history.epochs]
        assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), whole.parameters(), strict=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("prepared")
    ratings = make_planted_ratings(60, 45, 1300, seed=5)
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True)
    (folder / "ratings.csv").write_text("".join(f"{u},{i},{r}\n" for u, i, r in rows))
    return prepare(folder / "ratings.csv", folder / "store")


@pytest.mark.parametrize("at_once", [1, 300, 1 << 24])
@pytest.mark.parametrize("name", ["concat", "small-batches", "one-rating-a-batch", "adagrad", "funkmf"])
def test_streamed_ratings_train_as_those_in_memory(name: str, at_once: int, store: Store, data: RatingsDataset) -> None:
    streamed, history = trained(CONFIGS[name], StreamedRatings(store, at_once), backend="cpu")
    expected, expected_history = trained(CONFIGS[name], data, backend="cpu")
    assert (history.streamed, expected_history.streamed) == (True, False)
    assert [e.loss for e in history.epochs] == [e.loss for e in expected_history.epochs]
    assert all(torch.equal(a, b) for a, b in zip(streamed.parameters(), expected.parameters(), strict=True))


def test_streamed_ratings_need_the_engine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend cpu and at most 65,536 batches an epoch, not with reference"):
        trained(CONFIGS["concat"], StreamedRatings(store), backend="reference")
    monkeypatch.setattr(native, "MAX_BATCHES", 12)
    with pytest.raises(ConfigError, match="at most 12 batches an epoch, not with cpu and 1,300"):
        trained(CONFIGS["one-rating-a-batch"], StreamedRatings(store), backend="cpu")


def test_streamed_ratings_that_diverge_say_why(store: Store) -> None:
    with pytest.raises(TrainingDiverged, match="at a learning rate of"):
        trained(FunkMFConfig(learning_rate=1e30), StreamedRatings(store))


def test_batches_are_those_of_the_iterator(data: RatingsDataset) -> None:
    """With a learning rate of almost 0 the mean squared error of every batch tells its ratings."""
    config = FunkMFConfig(epochs=2, batch_size=50, factor_scale=0.0, learning_rate=1e-30, learning_rate_biases=1e-30)
    model = new_model(config, data)
    batches = BatchIterator(data, config.batch_size, config.seed)
    engine = NativeEpochs(model, batches)
    trainer, schedule = engine._trainer, engine._schedule
    for epoch in (1, 2):
        sides = [engine._state_of(side) for side in ("user", "item")]
        trainer.start_epoch(epoch)
        before = 0.0
        for number, batch in enumerate(batches.epoch(epoch)):
            sums, done, failed = trainer.run(number, number + 1, *sides, model.native_options(epoch), schedule, number)
            assert (done, failed) == (number + 1, False)
            errors = (batch.ratings.double() - model.global_mean).square()
            assert sums[1] - before == pytest.approx(errors.sum().item(), rel=1e-5)
            before = sums[1]


def test_the_engine_works_on_the_arrays_of_the_sorted_dataset(
    data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}
    module = native._module()
    monkeypatch.setattr(native, "_module", lambda: SimpleNamespace(Trainer=taken.update, Schedule=module.Schedule))
    batches = BatchIterator(data, 100, 0)
    NativeEpochs(new_model(CONFIGS["funkmf"], data), batches)
    assert taken["items"] is batches.dataset.item_idx
    assert taken["ratings"] is batches.dataset.ratings


def test_rows_that_no_batch_touches_for_long_catch_up() -> None:
    """One rating a batch: a row waits hundreds of steps, past the point where its momentum has died out."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 30, (900, 2)), axis=0)
    ratings = Ratings(pairs[:, 0].copy(), pairs[:, 1].copy(), rng.integers(1, 6, len(pairs)).astype(float))
    data = RatingsDataset.from_ratings(ratings)
    assert len(data) > 500
    config = MFDMCConfig(n_views=2, n_clusters=2, view_dim=2, epochs=2, batch_size=1, learning_rate_schedule="constant")
    (reference, _), (engine, _) = (trained(config, data, backend=backend) for backend in ("reference", "cpu"))
    for mine, theirs in zip(engine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_divergence_names_the_batch(data: RatingsDataset) -> None:
    config = MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, batch_size=100, learning_rate_centers=1e30, prune=False)
    with pytest.raises(TrainingDiverged, match=r"in epoch 1, batch \d+ of 13: centers reach"):
        trained(config, data, backend="cpu")


def test_every_batch_is_announced(data: RatingsDataset) -> None:
    heard: list[tuple[int, int]] = []

    class Listener:
        def on_batch_end(self, epoch: int, batch: int) -> None:
            heard.append((epoch, batch))

    config = FunkMFConfig(epochs=2, batch_size=100)
    epochs = make_epochs(new_model(config, data), BatchIterator(data, 100, 0), "cpu")
    assert isinstance(epochs, NativeEpochs)
    for epoch in (1, 2):
        epochs.run(epoch, [Listener()])
    assert heard == [(epoch, batch) for epoch in (1, 2) for batch in range(1, 14)]


def test_too_many_batches_go_through_torch(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_BATCHES", 12)
    model = new_model(FunkMFConfig(batch_size=100), data)
    assert isinstance(make_epochs(model, BatchIterator(data, 100, 0), "cpu"), TorchEpochs)


@pytest.mark.parametrize("name", ["concat", "funkmf"])
def test_adagrad_takes_the_same_steps_on_both_backends(name: str, data: RatingsDataset) -> None:
    (reference, expected), (other, history) = (
        trained(CONFIGS[name], data, backend=backend, optimizer="adagrad") for backend in ("reference", "cpu")
    )
    assert (expected.backend, history.backend) == ("reference", "cpu")
    assert len(history.prune_events) == len(expected.prune_events)
    for mine, theirs in zip(history.epochs, expected.epochs, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4, abs=1e-6)
    for mine, theirs in zip(other.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_unknown_kernels_are_refused(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDMC_CPU_KERNELS", "mmx")
    with pytest.raises(ValueError, match='cannot run the kernels "mmx"'):
        trained(CONFIGS["funkmf"], data, backend="cpu")


def _need(kernels: str) -> None:
    if kernels not in native.available_kernels():
        pytest.skip(f"this processor has no {kernels}")
