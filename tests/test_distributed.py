"""Several processes follow the trajectory of one, whatever the model, the batches and the way of their messages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epoch_cases import CONFIGS, new_model, trained
from thread_processes import together

from mfdmc_fast import MFDMC, BayesianMF, FunkMF, epochs
from mfdmc_fast.checkpoints import Checkpoints
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.data import Ratings, RatingsDataset, Store, StreamedRatings, make_planted_ratings, prepare
from mfdmc_fast.distributed import Processes, Shard, n_started
from mfdmc_fast.errors import ConfigError, TrainingDiverged
from mfdmc_fast.model import RatingModel
from mfdmc_fast.ops import native
from mfdmc_fast.sharding import ShardedRows
from mfdmc_fast.training import Callback, EpochRecord, TrainingHistory, fit

needs_engine = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")
BACKENDS = [pytest.param("cpu", marks=needs_engine), "reference"]


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    return make_planted_ratings(60, 45, 1300, seed=5)


@pytest.fixture(scope="module")
def data(ratings: Ratings) -> RatingsDataset:
    return RatingsDataset.from_ratings(ratings)


def assert_close(mine: tuple[RatingModel, TrainingHistory], expected: tuple[RatingModel, TrainingHistory]) -> None:
    """The same run within the rounding of sums in another order."""
    pruned = [[(e.epoch, e.side, e.view, e.cluster) for e in run[1].prune_events] for run in (mine, expected)]
    assert pruned[0] == pruned[1]
    for record, theirs in zip(mine[1].epochs, expected[1].epochs, strict=True):
        assert record.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-7)
        assert record.clusters_user == theirs.clusters_user
        if theirs.valid_rmse is not None:
            assert record.valid_rmse == pytest.approx(theirs.valid_rmse, rel=1e-6)
            assert record.valid_mae == pytest.approx(theirs.valid_mae, rel=1e-6)
    for (key, parameter), their_parameter in zip(mine[0].named_parameters(), expected[0].parameters(), strict=True):
        theirs_double = their_parameter.detach().double()
        error = (parameter.detach().double() - theirs_double).square().mean().sqrt()
        assert error <= 1e-5 * theirs_double.square().mean().sqrt(), key


def assert_same_bits(runs: list[tuple[RatingModel, TrainingHistory]]) -> None:
    """All processes have the same model."""
    for model, history in runs[1:]:
        assert [record.loss for record in history.epochs] == [record.loss for record in runs[0][1].epochs]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), runs[0][0].parameters(), strict=True))


# of those whose epochs have many batches there is one of few ratings below
MANY_BATCHES = ["rows-that-miss-many-steps", "one-rating-a-batch"]
RUNS = [
    *(pytest.param("cpu", name, size, marks=needs_engine) for name in CONFIGS for size in (2, 3)),
    *(("reference", name, 2) for name in CONFIGS if name not in MANY_BATCHES),
]


@pytest.mark.parametrize(("backend", "name", "size"), RUNS)
def test_several_processes_follow_the_trajectory_of_one(
    backend: str, name: str, size: int, data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(CONFIGS[name], data, backend=backend)
    runs = together(size, lambda _: trained(CONFIGS[name], data, backend=backend), monkeypatch)
    if name in ("concat", "adagrad"):
        assert runs[0][1].prune_events
    assert_close(runs[0], expected)
    assert_same_bits(runs)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_may_have_no_rating_in_a_batch(backend: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = RatingsDataset.from_ratings(make_planted_ratings(8, 6, 20, n_views=1, n_clusters=2, seed=2))
    config = MFDMCConfig(n_views=2, n_clusters=2, view_dim=2, epochs=3, batch_size=1, backend=backend)
    expected = trained(config, few, optimizer=optimizer)
    runs = together(3, lambda _: trained(config, few, optimizer=optimizer), monkeypatch)
    assert_close(runs[0], expected)
    assert_same_bits(runs)


@needs_engine
@pytest.mark.parametrize("name", ["concat", "small-batches", "funkmf"])
def test_the_way_of_the_messages_does_not_change_the_bits(
    name: str, data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_memory = together(3, lambda _: trained(CONFIGS[name], data, backend="cpu"), monkeypatch)
    monkeypatch.setattr(epochs, "open_rings", lambda processes: None)
    by_messages = together(3, lambda _: trained(CONFIGS[name], data, backend="cpu"), monkeypatch)
    assert_same_bits([*by_memory, *by_messages])


@needs_engine
def test_messages_larger_than_a_ring_go_through_it_in_parts(
    data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = together(2, lambda _: trained(CONFIGS["concat"], data, backend="cpu"), monkeypatch)
    monkeypatch.setattr("mfdmc_fast.shared_memory._MOST_RING_BYTES", 192)
    assert_same_bits([*expected, *together(2, lambda _: trained(CONFIGS["concat"], data, backend="cpu"), monkeypatch)])


@needs_engine
@pytest.mark.parametrize("threads", [1, 2])
def test_processes_with_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    large = RatingsDataset.from_ratings(make_planted_ratings(700, 400, 12_000, seed=6))
    expected = trained(CONFIGS["concat"], large, backend="cpu", batch_size=5000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = together(2, lambda _: trained(CONFIGS["concat"], large, backend="cpu", batch_size=5000), monkeypatch)
    finally:
        torch.set_num_threads(before)
    assert_close(runs[0], expected)
    assert_same_bits(runs)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ratings: Ratings) -> Store:
    folder = tmp_path_factory.mktemp("prepared")
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True)
    (folder / "ratings.csv").write_text("".join(f"{u},{i},{r}\n" for u, i, r in rows))
    return prepare(folder / "ratings.csv", folder / "store")


@needs_engine
@pytest.mark.parametrize("at_once", [1, 300, 1 << 24])
@pytest.mark.parametrize("name", ["concat", "small-batches", "one-rating-a-batch"])
def test_each_process_streams_its_part_of_a_store(
    name: str, at_once: int, store: Store, data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = together(3, lambda _: trained(CONFIGS[name], data, backend="cpu"), monkeypatch)
    runs = together(3, lambda _: trained(CONFIGS[name], StreamedRatings(store, at_once), backend="cpu"), monkeypatch)
    assert all(history.streamed for _, history in runs)
    assert_same_bits([*expected, *runs])


@needs_engine
def test_fit_streams_a_store_within_a_memory_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MFDMC(epochs=3, n_views=2, n_clusters=3).fit(store)
    models = together(
        2, lambda _: MFDMC(epochs=3, n_views=2, n_clusters=3).fit(store, memory_limit="8GiB"), monkeypatch
    )
    assert [model.history_.streamed for model in models] == [True, True]
    pairs = store.pairs()
    for model in models:
        np.testing.assert_allclose(model.predict(*pairs), expected.predict(*pairs), rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_is_that_of_all_and_the_best_epoch_is_kept(
    backend: str, data: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(-1, 60, 200), rng.integers(-1, 45, 200)  # of some, one or both are unknown
    validation = RatingsDataset(users, items, rng.integers(1, 6, 200), data.users, data.items)
    config = MFDMCConfig(n_views=2, n_clusters=4, epochs=8, prune_start=2, keep="best", patience=3, backend=backend)

    def work(_: Any) -> tuple[RatingModel, TrainingHistory]:
        model = new_model(config, data)
        return model, fit(model, data, validation)

    expected = work(None)
    runs = together(3, work, monkeypatch)
    assert [run[1].kept_epoch for run in runs] == [expected[1].kept_epoch] * 3
    assert [run[1].stop_reason for run in runs] == [expected[1].stop_reason] * 3
    assert_close(runs[0], expected)
    assert_same_bits(runs)


def test_validation_may_be_of_the_users_of_one_process(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = data.take(data.user_idx == 59)

    def work(_: Any) -> tuple[RatingModel, TrainingHistory]:
        model = new_model(CONFIGS["concat"], data)
        return model, fit(model, data, validation)

    assert_close(together(3, work, monkeypatch)[0], work(None))


class _Stop(Callback):
    """Ends a run after its third epoch, by asking or by force."""

    def __init__(self, by_force: bool) -> None:
        self._by_force = by_force

    def on_epoch_end(self, record: EpochRecord, model: Any) -> bool:
        if record.epoch == 3 and self._by_force:
            raise KeyboardInterrupt
        return record.epoch == 3


def test_a_callback_of_any_process_can_end_the_run(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(processes: Processes) -> TrainingHistory:
        callbacks = [_Stop(by_force=False)] if processes.rank == 1 else []
        return fit(new_model(CONFIGS["concat"], data), data, callbacks=callbacks)

    reasons = [history.stop_reason for history in together(2, work, monkeypatch)]
    assert reasons == ["a callback asked to stop after epoch 3"] * 2


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 3), (2, 2)])
@pytest.mark.parametrize("name", ["concat", "adagrad", "funkmf"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_continues_with_any_number_of_processes(
    backend: str,
    name: str,
    sizes: tuple[int, int],
    data: RatingsDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(processes: Processes, by_force: bool) -> tuple[RatingModel, TrainingHistory]:
        model = new_model(CONFIGS[name], data, backend=backend)
        if not processes.is_first:
            return model, fit(model, data, callbacks=[_Stop(by_force=True)] * by_force)
        with Checkpoints(tmp_path, every=2, resume=True) as checkpoints:
            return model, fit(model, data, callbacks=[_Stop(by_force=True)] * by_force, checkpoints=checkpoints)

    before, after = sizes
    with pytest.raises(KeyboardInterrupt):
        together(before, lambda processes: work(processes, True), monkeypatch)
    assert [path.stem for path in tmp_path.glob("epoch-*")] == ["epoch-00002"]
    resumed = together(after, lambda processes: work(processes, False), monkeypatch)
    undisturbed = together(after, lambda _: trained(CONFIGS[name], data, backend=backend), monkeypatch)
    assert_close(resumed[0], undisturbed[0])
    assert_same_bits(resumed)
    if before == after:
        assert_same_bits([resumed[0], undisturbed[0]])


@needs_engine
def test_the_best_epoch_is_in_a_checkpoint_whole(
    data: RatingsDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MFDMCConfig(n_views=2, n_clusters=3, epochs=6, keep="best", learning_rate=1.0)
    validation = data.take(np.arange(0, 1300, 7))

    def work(processes: Processes, stop: bool) -> tuple[RatingModel, TrainingHistory]:
        model = new_model(config, data)
        if not processes.is_first:
            return model, fit(model, data, validation, [_Stop(by_force=True)] * stop)
        with Checkpoints(tmp_path, every=1, resume=True) as checkpoints:
            return model, fit(model, data, validation, [_Stop(by_force=True)] * stop, checkpoints=checkpoints)

    with pytest.raises(KeyboardInterrupt):
        together(2, lambda processes: work(processes, True), monkeypatch)
    expected = new_model(config, data)
    history = fit(expected, data, validation)
    assert_close(together(3, lambda processes: work(processes, False), monkeypatch)[0], (expected, history))


def test_the_bayesian_teacher_of_the_first_process_teaches_all(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_: Any) -> MFDMC:
        return MFDMC(teacher=BayesianMF(sweeps=6, burn_in=2, rank=4), epochs=3, n_views=2, n_clusters=3).fit(ratings)

    expected = work(None)
    for model in together(2, work, monkeypatch):
        np.testing.assert_allclose(
            model.predict(ratings.users, ratings.items), expected.predict(ratings.users, ratings.items), rtol=1e-5
        )


def test_what_one_process_does_is_not_for_several(ratings: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="BayesianMF trains in one process, not in 2"):
        together(2, lambda _: BayesianMF(sweeps=3, burn_in=1).fit(ratings), monkeypatch)


def test_processes_with_other_ratings_or_settings_are_refused(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_ratings(processes: Processes) -> Any:
        changed = Ratings(ratings.users, ratings.items, np.where(ratings.ratings == 3, 4.0 - processes.rank, 2.0))
        return FunkMF(epochs=1).fit(changed)

    with pytest.raises(ConfigError, match="not given the same as the others"):
        together(2, other_ratings, monkeypatch)
    with pytest.raises(ConfigError, match="not given the same"):
        together(2, lambda processes: FunkMF(epochs=1, seed=processes.rank).fit(ratings), monkeypatch)


@needs_engine
def test_divergence_is_that_of_all(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, batch_size=100, learning_rate_centers=1e30, prune=False)

    def message(_: Any) -> str:
        with pytest.raises(TrainingDiverged, match=r"in epoch 1, batch \d+ of 13") as raised:
            trained(config, data, backend="cpu")
        return str(raised.value)

    assert len(set(together(2, message, monkeypatch))) == 1


def test_centers_that_differ_become_those_of_the_first(data: RatingsDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(processes: Processes) -> list[torch.Tensor]:
        model = new_model(CONFIGS["concat"], data)
        rows = ShardedRows(model, Shard.of(processes, 60, 45, 1300, lambda: data.user_offsets))
        side = model.prunable_sides()["user"]
        with torch.no_grad():
            side.centers[0, 0] += processes.rank
        state = {side.centers: {"exp_avg": torch.full_like(side.centers, processes.rank)}}
        rows.align_centers(state)
        return [side.centers.detach(), state[side.centers]["exp_avg"]]

    first, second = together(2, work, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not second[1].any()


def test_shares_are_of_about_as_many_ratings_each() -> None:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 50, 1000))])
    n = int(offsets[-1])
    shards = [Shard.of(Processes(rank, 4), 1000, 31, n, lambda: offsets) for rank in range(4)]
    assert len({(s.user_bounds, s.item_bounds, s.rating_bounds) for s in shards}) == 1
    for shard in shards:
        own = shard.ratings
        assert abs(own.stop - own.start - n / 4) <= 50
        assert offsets[shard.users.start] == own.start
        assert offsets[shard.users.stop] == own.stop
    assert shards[0].item_bounds == (0, 7, 15, 23, 31)


def test_one_user_with_most_ratings_leaves_each_process_a_user() -> None:
    offsets = np.array([0, 0, 1000, 1001, 1001, 1002, 1003])
    shards = [Shard.of(Processes(rank, 4), 6, 5, 1003, lambda: offsets) for rank in range(4)]
    assert shards[0].rating_bounds == (0, 1000, 1001, 1002, 1003)
    assert shards[0].user_bounds == (0, 2, 4, 5, 6)
    with pytest.raises(ConfigError, match="5 processes, but only 4 users with ratings"):
        Shard.of(Processes(0, 5), 6, 5, 1003, lambda: offsets)


def test_one_process_has_everything_and_tells_nobody() -> None:
    alone = Processes.current()
    assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
    assert alone.sum([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.from_first({"a": 1}) == {"a": 1}
    assert Shard.of(alone, 3, 4, 5, lambda: pytest.fail("not needed")).users == slice(0, 3)


def test_the_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert n_started() == 1  # some systems set it for other reasons
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    assert n_started() == 4
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ConfigError, match="WORLD_SIZE = 'four'"):
        n_started()


def test_a_share_of_the_engine_is_checked(data: RatingsDataset) -> None:
    share = native.Share(rank=2, n_processes=2, first=0, total=1300, all_to_all=lambda *_: None)
    with pytest.raises(ValueError, match="the rank below the number of processes"):
        native.Trainer(
            data.sorted().user_offsets, data.item_idx, data.ratings, n_items=45, n_batches=3, seed=0, share=share
        )


def test_memory_of_a_process_falls_with_their_number() -> None:
    from mfdmc_fast.memory import training_memory

    one, four = (training_memory(FunkMFConfig(), 10**6, 10**4, 10**8, n) for n in (1, 4))
    assert four.tables < 0.6 * one.tables
    assert four.batch < 0.26 * one.batch


def test_no_rings_where_memory_cannot_be_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mfdmc_fast.shared_memory import open_rings

    monkeypatch.setattr("mfdmc_fast.shared_memory._FOLDER", tmp_path / "missing")
    assert together(2, open_rings, monkeypatch) == [None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr("mfdmc_fast.shared_memory._PIDS", tmp_path / "missing")
        monkeypatch.setattr("mfdmc_fast.shared_memory._FOLDER", tmp_path)
        assert together(2, open_rings, monkeypatch) == [None, None]
    assert list(tmp_path.iterdir()) == []
