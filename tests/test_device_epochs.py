"""Epochs on a device follow the reference: in Triton's interpreter on CPU tensors where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epoch_cases import CONFIGS, assert_same_run, new_model, trained

from mfdmc_fast import MFDMC
from mfdmc_fast.config import MFDMCConfig, TrainingConfig
from mfdmc_fast.data import BatchIterator, RatingsDataset, make_planted_ratings
from mfdmc_fast.data.batches import deal_stream
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.errors import ConfigError, TrainingDiverged
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import triton_backend
from mfdmc_fast.pruning import remove_clusters
from mfdmc_fast.training import Callback, EpochRecord, evaluate_dataset, fit

if triton_backend.why_unavailable() is not None:
    pytest.skip(str(triton_backend.why_unavailable()), allow_module_level=True)

from mfdmc_fast.device_batches import ResidentBatches, StreamedBatches, make_device_batches
from mfdmc_fast.device_epochs import DeviceEpochs
from mfdmc_fast.device_validation import DeviceValidation
from mfdmc_fast.ops.triton_kernels import deal as dealing
from mfdmc_fast.ops.triton_kernels.deal import Columns, Dealer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
# an interpreted step takes half a second, so the shared cases are cut down to a few
SMALL = {"n_views": 2, "n_clusters": 3, "view_dim": 3, "epochs": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pruned": ("concat", SMALL | {"epochs": 3, "prune_start": 1, "prune_threshold": 0.33}),
    "adagrad-pruned": ("adagrad", SMALL | {"epochs": 3, "prune_start": 1, "prune_threshold": 0.33}),
    "sum": ("sum", SMALL | {"weight_entropy": 0.1, "weight_proximity": 0.01}),
    "no-biases-rows-that-miss-steps": ("plain", SMALL | {"epochs": 1, "batch_size": 220}),
    "l2-by-count": ("l2-by-count", SMALL | {"learning_rate_schedule": "one-cycle"}),
}


@pytest.fixture(scope="module")
def ratings() -> RatingsDataset:
    return RatingsDataset.from_ratings(make_planted_ratings(60, 45, 1300, seed=5)).sorted()


def epochs_of(config: TrainingConfig, ratings: RatingsDataset, **options: Any) -> DeviceEpochs:
    model = new_model(config, ratings).to(DEVICE)
    assert isinstance(model, MFDMCModel)
    return DeviceEpochs(model, BatchIterator(ratings, config.batch_size, config.seed), **options)


def parameters_of(epochs: DeviceEpochs) -> list[torch.Tensor]:
    return [p.detach().clone() for p in epochs._model.parameters()]


def resident(ratings: RatingsDataset, n_batches: int) -> Dealer:
    columns = (torch.from_numpy(c).to(DEVICE) for c in (ratings.user_idx, ratings.item_idx, ratings.ratings))
    return Dealer(Columns(*columns), len(ratings.users), len(ratings.items), n_batches)


@pytest.mark.parametrize("by_torch", [False, True], ids=["kernel", "torch"])
@pytest.mark.parametrize("batch_size", [1300, 650, 100, 37])
def test_dealing_on_the_device_gives_the_batches_of_the_iterator(
    batch_size: int, by_torch: bool, ratings: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torch:
        monkeypatch.setattr(dealing, "MAX_BATCHES_OF_KERNEL", 0)
    batches = BatchIterator(ratings, batch_size, seed=2**63 - 5)
    dealer = resident(ratings, batches.n_batches)
    for epoch in (1, 7):  # the second overwrites what the first left in the places without a rating
        stream = deal_stream(batches.seed, np.array([epoch])).view(np.int64)
        dealer.deal(torch.from_numpy(stream).to(DEVICE))
        for number, batch in enumerate(batches.epoch(epoch)):
            size = len(batch.ratings)
            assert int(dealer.sizes()[number]) == size
            order = batch.item_idx.sort(stable=True).indices
            for dealt, expected in ((dealer.by_user, batch), (dealer.by_item, type(batch)(*(c[order] for c in batch)))):
                assert torch.equal(dealt.users[number, :size].cpu(), expected.user_idx.int())
                assert torch.equal(dealt.items[number, :size].cpu(), expected.item_idx.int())
                assert torch.equal(dealt.ratings[number, :size].cpu(), expected.ratings)
            assert (dealer.by_user.users[number, size:] == 60).all()
            assert (dealer.by_item.items[number, size:] == 45).all()


def test_a_tile_may_end_before_the_last_rating(ratings: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs take part, as they always do on a GPU."""
    tile = dealing.launch.Tile
    monkeypatch.setattr(dealing.launch, "deal_tile", lambda n: tile(32, 8, 4))
    monkeypatch.setattr(dealing.launch, "partition_tile", lambda n: tile(256, 8, 4))
    batches = BatchIterator(ratings, 200, seed=1)
    dealer = resident(ratings, batches.n_batches)
    dealer.deal(torch.from_numpy(deal_stream(1, np.array([3])).view(np.int64)).to(DEVICE))
    for number, batch in enumerate(batches.epoch(3)):
        size = len(batch.ratings)
        order = batch.item_idx.sort(stable=True).indices
        assert torch.equal(dealer.by_user.items[number, :size].cpu(), batch.item_idx.int())
        assert torch.equal(dealer.by_item.users[number, :size].cpu(), batch.user_idx[order].int())


@pytest.mark.parametrize("name", list(CASES))
def test_a_run_follows_the_reference(name: str, ratings: RatingsDataset) -> None:
    case, changes = CASES[name]
    expected = trained(CONFIGS[case], ratings, backend="reference", **changes)
    config = type(CONFIGS[case])(**{**CONFIGS[case].to_dict(), **changes, "backend": "triton", "device": DEVICE})
    model = new_model(config, ratings).to(DEVICE)
    mine = model, fit(model, ratings)
    assert mine[1].backend == "triton"
    assert bool(mine[1].prune_events) == ("pruned" in name)
    if "pruned" in name:  # and training went on
        assert mine[1].prune_events[0].epoch < config.epochs
    assert_same_run(mine, expected)


def test_the_same_seed_gives_the_same_bits_and_streamed_ratings_give_them_too(ratings: RatingsDataset) -> None:
    config = MFDMCConfig(**SMALL, batch_size=700, backend="triton")
    results = []
    for options in ({}, {}, {"memory_bytes": 10}):
        epochs = epochs_of(config, ratings, **options)
        assert isinstance(epochs._data, StreamedBatches if options else ResidentBatches)
        results.append((epochs.run(2, []), parameters_of(epochs)))
    for loss, parameters in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][1], strict=True))


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch_end(self, record: EpochRecord, model: Any) -> None:
            if record.epoch == 2:
                raise KeyboardInterrupt

    planted = make_planted_ratings(60, 45, 1300, seed=5)
    settings = CASES["pruned"][1] | {"batch_size": 700, "backend": "triton", "device": DEVICE}
    unbroken = MFDMC(**settings).fit(planted)
    assert unbroken.history_.prune_events[0].epoch < 3
    with pytest.raises(KeyboardInterrupt):
        MFDMC(**settings).fit(planted, checkpoint_dir=tmp_path, checkpoint_every=1, callbacks=[Stop()])
    resumed = MFDMC(**settings).fit(planted, checkpoint_dir=tmp_path, resume=True)
    for mine, theirs in zip(resumed.model_.parameters(), unbroken.model_.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_ratings_stay_on_the_device_where_they_find_room(ratings: RatingsDataset) -> None:
    batches = BatchIterator(ratings, 700, 0)
    needed = len(ratings) * Dealer.BYTES_PER_RATING
    device = torch.device(DEVICE)
    assert make_device_batches(batches, 60, 45, device, needed).static
    assert make_device_batches(batches, 60, 45, device).static
    assert not make_device_batches(batches, 60, 45, device, needed - 1).static


# the interpreter computes with numpy, which warns of what a GPU says nothing about
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_divergence_names_the_batch_and_listeners_hear_of_all(ratings: RatingsDataset) -> None:
    heard: list[tuple[int, int]] = []

    class Listener:
        def on_batch_end(self, epoch: int, batch: int) -> None:
            heard.append((epoch, batch))

    config = MFDMCConfig(**SMALL, batch_size=700, learning_rate_centers=1e30, prune=False, backend="triton")
    epochs = epochs_of(config, ratings)
    with pytest.raises(TrainingDiverged, match=r"in epoch 1, batch 2 of 2: centers reach"):
        epochs.run(1, [Listener()])
    assert heard == []
    quiet = epochs_of(MFDMCConfig(**SMALL, batch_size=700, backend="triton"), ratings)
    quiet.run(1, [Listener()])
    assert heard == [(1, 1), (1, 2)]


def test_16_bit_tables_train_with_float32_moments(ratings: RatingsDataset) -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = new_model(MFDMCConfig(**SMALL, batch_size=700, backend="triton"), ratings).to(DEVICE, dtype)
        assert isinstance(model, MFDMCModel)
        epochs = DeviceEpochs(model, BatchIterator(ratings, 700, 0))
        assert {t.dtype for state in epochs.optimizer.state.values() for t in state.values()} == {torch.float32}
        results.append((epochs.run(1, []), DeviceValidation(model, ratings, (1.0, 5.0)).errors()["rmse"]))
        assert all(p.dtype == dtype for p in model.parameters())
    # one in 256 is the spacing of bfloat16, in which the parameters start already
    assert results[1][0]["mse"] == pytest.approx(results[0][0]["mse"], rel=1 / 128)
    assert results[1][1] == pytest.approx(results[0][1], rel=1 / 128)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_with_16_bit_tables_follows_that_with_float32(dtype: str, tmp_path: Path) -> None:
    """Also where it is resumed, bit by bit; the trained model is float32."""
    settings: dict[str, Any] = CASES["pruned"][1] | {"batch_size": 1300, "backend": "triton"}
    table = make_planted_ratings(60, 45, 1300, seed=5)
    checkpoints: dict[str, Any] = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 1}
    expected = MFDMC(**settings, device=DEVICE).fit(table)
    half = MFDMC(**settings, device=DEVICE, dtype=dtype).fit(table, **checkpoints)
    assert {p.dtype for p in half.model_.parameters()} == {torch.float32}
    assert half.history_.epochs[-1].loss["mse"] == pytest.approx(expected.history_.epochs[-1].loss["mse"], rel=0.02)
    assert half.history_.prune_events
    newest = max((tmp_path / "run").glob("epoch-*"))
    newest.unlink()
    resumed = MFDMC(**settings, device=DEVICE, dtype=dtype).fit(table, **checkpoints, resume=True)
    for mine, other in zip(resumed.model_.parameters(), half.model_.parameters(), strict=True):
        assert torch.equal(mine, other)
    half.save(tmp_path / "model")
    assert np.array_equal(MFDMC.load(tmp_path / "model").predict([1, 2], [1, 2]), half.predict([1, 2], [1, 2]))


def test_16_bit_tables_need_the_triton_backend(ratings: RatingsDataset) -> None:
    model = new_model(MFDMCConfig(**SMALL, dtype="bfloat16", backend="reference"), ratings)
    with pytest.raises(ConfigError, match="trained by the backend triton in one process, not by reference"):
        fit(model, ratings)


def test_the_triton_backend_trains_on_the_device(ratings: RatingsDataset) -> None:
    model = new_model(MFDMCConfig(**SMALL), ratings).to(DEVICE)
    assert isinstance(make_epochs(model, BatchIterator(ratings, None, 0), "triton"), DeviceEpochs)


@pytest.mark.parametrize("biases", [True, False])
def test_validation_errors_are_those_of_the_host(biases: bool, ratings: RatingsDataset) -> None:
    """Also for pairs with an unknown user, an unknown item, or both."""
    model = new_model(MFDMCConfig(**SMALL, biases=biases, backend="triton", device=DEVICE), ratings).to(DEVICE)
    assert isinstance(model, MFDMCModel)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator).to(DEVICE)
    users, items = ratings.user_idx[::5].copy(), ratings.item_idx[::5].copy()
    users[::7], items[::4] = -1, -1
    watched = RatingsDataset(users, items, ratings.ratings[::5], ratings.users, ratings.items)
    scale = (1.5, 4.5)
    for part in (watched, watched.take(users < 0), watched.take((users >= 0) & (items >= 0))):
        errors = DeviceValidation(model, part, scale).errors()
        assert errors == pytest.approx(evaluate_dataset(model, part, scale), rel=1e-6)


def test_an_epoch_is_recorded_once_its_shapes_have_lasted(
    ratings: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule alone, with something else in place of CUDA graphs."""
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def recording(graph: Graph) -> Iterator[None]:
        done.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    epochs = epochs_of(MFDMCConfig(**SMALL | {"epochs": 9}, batch_size=700, backend="triton"), ratings)
    epochs._may_record = True
    monkeypatch.setattr(epochs, "_launch_steps", lambda: done.append("launch"))

    def run(epoch: int) -> list[str]:
        done.clear()
        epochs.run(epoch, [])
        return list(done)

    assert run(1) == ["launch"]
    assert run(2) == ["record", "launch", "replay"]
    assert run(3) == ["replay"]
    remove_clusters(epochs._model.user, [[0], []], epochs.optimizer)
    assert run(4) == ["launch"]
    assert run(5) == ["record", "launch", "replay"]
    restored = epochs._model.item.centers
    restored.data = restored.data.clone()  # as where a checkpoint is restored
    assert run(6) == ["launch"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_recorded_epochs_give_the_bits_of_launched_ones(optimizer: str, ratings: RatingsDataset) -> None:
    config = MFDMCConfig(n_views=3, n_clusters=5, epochs=8, batch_size=100, optimizer=optimizer, device="cuda")
    results = []
    for recorded in (True, False):
        epochs = epochs_of(config, ratings)
        assert epochs._may_record
        epochs._may_record = recorded
        losses = []
        for epoch in range(1, config.epochs + 1):
            losses.append(epochs.run(epoch, []))
            if epoch == 4:
                remove_clusters(epochs._model.user, [[0], [2, 3], []], epochs.optimizer)
        assert (epochs._graph is not None) == recorded
        results.append((losses, parameters_of(epochs)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.gpu
@needs_gpu
def test_a_model_from_fit_to_file_on_a_gpu(tmp_path: Path) -> None:
    planted = make_planted_ratings(200, 150, 8000, seed=1)
    model = MFDMC(epochs=20, device="cuda", validation_fraction=0.1).fit(planted)
    on_host = MFDMC(epochs=20, validation_fraction=0.1).fit(planted)
    assert model.history_.backend == "triton"
    valid = [fitted.history_.epochs[-1].valid_rmse for fitted in (model, on_host)]
    assert valid[0] == pytest.approx(valid[1], abs=0.01)
    model.save(tmp_path / "model.safetensors")
    for device in ("cuda", "cpu"):
        loaded = MFDMC.load(tmp_path / "model.safetensors", device=device)
        np.testing.assert_allclose(loaded.predict([1, 2, 999], [3, 4, 5]), model.predict([1, 2, 999], [3, 4, 5]), 1e-4)
        np.testing.assert_array_equal(loaded.recommend(7, 5).items, model.recommend(7, 5).items)
    assert model.clusters("item")
    assert len(model.similar_items(3, 4).items) == 4
