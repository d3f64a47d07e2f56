"""The fit loop: what it learns, what each setting does, validation, callbacks, divergence, and its history."""

from __future__ import annotations

import dataclasses
import json
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import mfdmc_fast.training
from mfdmc_fast import epochs
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, TrainingConfig, weight_at
from mfdmc_fast.data import RatingsDataset, Vocabulary, make_planted_ratings
from mfdmc_fast.errors import ConfigError, DataError, TrainingDiverged
from mfdmc_fast.model import FunkMFModel, MFDMCModel, RatingModel, SideName
from mfdmc_fast.ops import native
from mfdmc_fast.pruning import PruneEvent
from mfdmc_fast.scoring import predict_rows
from mfdmc_fast.training import Callback, EpochRecord, TrainingHistory, evaluate_dataset, fit

# every setting that moves the numbers, so that new defaults cannot; pruning happens in the second of three epochs
MFDMC_BASE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 128,
    "optimizer": "adam",
    "learning_rate_schedule": "cosine",
    "n_views": 2,
    "n_clusters": 5,
    "view_dim": 2,
    "combine": "concat",
    "center_scale": 1.0,
    "logit_scale": 0.5,
    "learning_rate": 0.1,
    "learning_rate_centers": 0.1,
    "learning_rate_biases": 0.01,
    "weight_spread": 0.05,
    "spread_margin": 3.0,
    "weight_proximity": 0.01,
    "weight_entropy": 0.02,
    "weight_l2": 0.05,
    "weight_bias_l2": 0.01,
    "prune_start": 2,
    "prune_threshold": 0.22,
    "min_clusters": 2,
}
FUNKMF_BASE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 128,
    "optimizer": "adam",
    "learning_rate_schedule": "cosine",
    "n_factors": 4,
    "factor_scale": 0.1,
    "learning_rate": 0.01,
    "learning_rate_biases": 0.01,
    "weight_l2": 0.1,
    "weight_bias_l2": 0.01,
}


@pytest.fixture(scope="module")
def whole() -> RatingsDataset:
    return RatingsDataset.from_ratings(make_planted_ratings(40, 30, 600, n_views=2, n_clusters=3, view_dim=2))


@pytest.fixture(scope="module")
def train(whole: RatingsDataset) -> RatingsDataset:
    return whole.take(np.arange(len(whole)) % 4 != 0)


@pytest.fixture(scope="module")
def validation(whole: RatingsDataset) -> RatingsDataset:
    return whole.take(np.arange(len(whole)) % 4 == 0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_model(train: RatingsDataset, kind: str = "mfdmc", **settings: Any) -> RatingModel:
    n_users, n_items, mean = len(train.users), len(train.items), float(train.ratings.mean())
    if kind == "mfdmc":
        return MFDMCModel(n_users, n_items, MFDMCConfig(**MFDMC_BASE | settings), mean)
    return FunkMFModel(n_users, n_items, FunkMFConfig(**FUNKMF_BASE | settings), mean)


def run(
    train: RatingsDataset,
    kind: str = "mfdmc",
    validation: RatingsDataset | None = None,
    callbacks: tuple[Callback, ...] = (),
    **settings: Any,
) -> tuple[RatingModel, TrainingHistory]:
    model = make_model(train, kind, **settings)
    return model, fit(model, train, validation, callbacks)


def all_predictions(model: RatingModel) -> np.ndarray:
    users, items = np.meshgrid(*(np.arange(n) for n in model.n_entities.values()), indexing="ij")
    return predict_rows(model, users.ravel(), items.ravel())


def same_parameters(first: RatingModel, second: RatingModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def without_seconds(history: TrainingHistory) -> dict[str, Any]:
    values = history.to_dict()
    del values["seconds"]
    for record in values["epochs"]:
        del record["seconds"]
    return values


def make_dataset(users: list[int], items: list[int], ratings: list[float], sizes: tuple[int, int]) -> RatingsDataset:
    return RatingsDataset(
        np.array(users, dtype=np.int64),
        np.array(items, dtype=np.int64),
        np.array(ratings, dtype=np.float32),
        Vocabulary(range(sizes[0])),
        Vocabulary(range(sizes[1])),
    )


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_mfdmc_learns(train: RatingsDataset, validation: RatingsDataset, combine: str) -> None:
    model, history = run(train, "mfdmc", validation, epochs=15, combine=combine, prune_start=4)
    assert history.epochs[-1].loss["mse"] < 0.6 * history.epochs[0].loss["mse"]
    errors = evaluate_dataset(model, validation, train.scale)
    assert errors["rmse"] < 0.95 * float(validation.ratings.std())
    assert len(history.prune_events) > 0


def test_funkmf_learns(train: RatingsDataset) -> None:
    _, history = run(train, "funkmf", epochs=25, learning_rate=0.05)
    assert history.epochs[-1].loss["mse"] < 0.6 * history.epochs[0].loss["mse"]
    assert history.epochs[-1].loss["total"] < history.epochs[0].loss["total"]


MFDMC_CHANGES: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 64,
    "optimizer": "adagrad",
    "learning_rate_schedule": "constant",
    "rating_unit": 2.0,
    "l2_count_power": 1.0,
    "seed": 1,
    "n_views": 3,
    "n_clusters": 4,
    "view_dim": 3,
    "combine": "sum",
    "biases": False,
    "center_scale": 0.9,
    "logit_scale": 0.6,
    "learning_rate": 0.11,
    "learning_rate_centers": 0.11,
    "learning_rate_biases": 0.02,
    "weight_spread": 0.1,
    "spread_margin": 2.0,
    "weight_proximity": 0.1,
    "weight_entropy": 0.1,
    "weight_l2": 0.2,
    "weight_bias_l2": 0.1,
    "prune": False,
    "prune_start": 3,
    "prune_threshold": 0.01,
    "min_clusters": 4,
}
FUNKMF_CHANGES: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 64,
    "optimizer": "adagrad",
    "learning_rate_schedule": "one-cycle",
    "rating_unit": 2.0,
    "l2_count_power": 0.0,
    "seed": 1,
    "n_factors": 5,
    "biases": False,
    "factor_scale": 0.2,
    "learning_rate": 0.02,
    "learning_rate_biases": 0.02,
    "weight_l2": 0.2,
    "weight_bias_l2": 0.1,
}
# they decide where and how well the same numbers are computed, or act on a validation split (see the other tests), or
# on what the estimator trains on (see test_teachers.py)
WITHOUT_EFFECT_HERE = {"dtype", "validation_fraction", "patience", "keep", "backend", "device"}
WITHOUT_EFFECT_HERE |= {"teacher", "pairs_per_rating", "pair_smoothing"}


@pytest.fixture(scope="module")
def base_predictions(train: RatingsDataset) -> dict[str, np.ndarray]:
    return {kind: all_predictions(run(train, kind)[0]) for kind in ("mfdmc", "funkmf")}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("mfdmc", name, value) for name, value in MFDMC_CHANGES.items()]
    + [("funkmf", name, value) for name, value in FUNKMF_CHANGES.items()],
    ids=[f"mfdmc-{name}" for name in MFDMC_CHANGES] + [f"funkmf-{name}" for name in FUNKMF_CHANGES],
)
def test_each_setting_changes_the_result(
    train: RatingsDataset, base_predictions: dict[str, np.ndarray], kind: str, name: str, value: Any
) -> None:
    predictions = all_predictions(run(train, kind, **{name: value})[0])
    assert np.isfinite(predictions).all()
    assert np.abs(predictions - base_predictions[kind]).max() > 1e-5


@pytest.mark.parametrize(("config", "changes"), [(MFDMCConfig, MFDMC_CHANGES), (FunkMFConfig, FUNKMF_CHANGES)])
def test_no_setting_is_forgotten_above(config: type[TrainingConfig], changes: dict[str, Any]) -> None:
    assert {f.name for f in dataclasses.fields(config)} - WITHOUT_EFFECT_HERE == set(changes)


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
def test_the_same_seed_gives_the_same_bits(train: RatingsDataset, validation: RatingsDataset, kind: str) -> None:
    results = []
    for n_threads in (1, 2, 2):
        torch.set_num_threads(n_threads)
        results.append(run(train, kind, validation, seed=7))
    (first, history), *others = results
    for model, other_history in others:
        assert same_parameters(first, model)
        assert without_seconds(history) == without_seconds(other_history)


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
def test_another_seed_gives_another_model(train: RatingsDataset, kind: str) -> None:
    first, second = (all_predictions(run(train, kind, seed=seed)[0]) for seed in (7, 8))
    assert np.abs(first - second).max() > 0.01


def test_the_seed_fixes_the_batches_too(train: RatingsDataset) -> None:
    first, second = make_model(train, seed=1), make_model(train, seed=2)
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        fit(model, train)
    assert not same_parameters(first, second)


def test_every_epoch_has_all_ratings_in_batches_of_its_own(
    train: RatingsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(train, batch_size=100, backend="reference")
    seen: dict[int, list[list[tuple[int, int]]]] = {}
    batch_loss = model.batch_loss

    def spy(users: torch.Tensor, items: torch.Tensor, ratings: torch.Tensor, *, epoch: int) -> Any:
        seen.setdefault(epoch, []).append(list(zip(users.tolist(), items.tolist(), strict=True)))
        return batch_loss(users, items, ratings, epoch=epoch)

    monkeypatch.setattr(model, "batch_loss", spy)
    fit(model, train)
    pairs = sorted(zip(train.user_idx.tolist(), train.item_idx.tolist(), strict=True))
    assert list(seen) == [1, 2, 3]
    assert all(sorted(pair for batch in batches for pair in batch) == pairs for batches in seen.values())
    assert seen[1] != seen[2] != seen[3] != seen[1]


def test_training_does_not_touch_the_global_generator(train: RatingsDataset) -> None:
    before = torch.get_rng_state()
    run(train, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_is_never_trained_on(train: RatingsDataset, validation: RatingsDataset) -> None:
    (plain, history), (watched, watched_history) = run(train), run(train, "mfdmc", validation)
    assert same_parameters(plain, watched)
    assert [record.valid_rmse for record in history.epochs] == [None] * 3
    last = watched_history.epochs[-1]
    errors = evaluate_dataset(watched, validation, train.scale)
    assert (last.valid_rmse, last.valid_mae) == (errors["rmse"], errors["mae"])


def test_evaluation_clips_to_the_scale_and_serves_unknown_ids(
    train: RatingsDataset, validation: RatingsDataset
) -> None:
    unknown = dataclasses.replace(
        validation, user_idx=np.where(np.arange(len(validation)) % 3 == 0, -1, validation.user_idx)
    )
    model, history = run(train, "mfdmc", unknown, epochs=1)
    predictions = predict_rows(model, unknown.user_idx, unknown.item_idx, train.scale).astype(float)
    errors = predictions - unknown.ratings
    assert history.epochs[0].valid_rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-12)
    assert history.epochs[0].valid_mae == pytest.approx(np.abs(errors).mean(), rel=1e-12)
    # a scale of one point leaves nothing but that point
    narrow = fit(make_model(train, epochs=1), train, validation, scale=(3.0, 3.0))
    assert narrow.epochs[0].valid_mae == pytest.approx(np.abs(validation.ratings - 3.0).mean(), rel=1e-6)


@pytest.mark.parametrize("settings", [{"patience": 2}, {"keep": "best"}], ids=["patience", "keep-best"])
@pytest.mark.parametrize("empty", [True, False], ids=["no-ratings", "no-dataset"])
def test_settings_that_need_validation_ratings(train: RatingsDataset, settings: dict[str, Any], empty: bool) -> None:
    nothing = train.take(np.arange(0)) if empty else None
    with pytest.raises(ConfigError, match=r"(patience|keep='best') needs validation ratings"):
        run(train, "mfdmc", nothing, **settings)


def test_an_empty_validation_set_is_not_watched(train: RatingsDataset) -> None:
    _, history = run(train, "mfdmc", train.take(np.arange(0)), epochs=1)
    assert history.epochs[0].valid_rmse is None
    assert history.epochs[0].valid_mae is None


PATIENCE_CASES = {
    # validation RMSE of each epoch, patience, epochs run, best epoch, whether patience ended the run
    "two-worse": ([1.0, 0.9, 0.95, 0.96, 0.8, 0.7], 2, 4, 2, True),
    "a-tie-is-no-gain": ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], 2, 3, 1, True),
    "a-gain-starts-anew": ([1.0, 1.1, 0.9, 1.1, 0.8, 1.0], 2, 6, 5, False),
    "always-better": ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 1, 6, 6, False),
    "first-is-best": ([1.0, 1.1, 0.5, 0.5, 0.5, 0.5], 1, 2, 1, True),
    "no-patience": ([1.0, 0.5, 1.1, 1.2, 1.3, 1.4], None, 6, 2, False),
}


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize(
    ("errors", "patience", "n_run", "best", "stopped"), PATIENCE_CASES.values(), ids=PATIENCE_CASES
)
def test_early_stopping_and_kept_epoch(
    train: RatingsDataset,
    validation: RatingsDataset,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[float],
    patience: int | None,
    n_run: int,
    best: int,
    stopped: bool,
    keep: str,
) -> None:
    planned = iter(errors)
    monkeypatch.setattr(mfdmc_fast.training, "evaluate_dataset", lambda *_: {"rmse": next(planned), "mae": 0.5})
    settings = {"epochs": 6, "batch_size": 500, "n_clusters": 2, "prune": False}
    _, history = run(train, "mfdmc", validation, patience=patience, keep=keep, **settings)
    assert [record.valid_rmse for record in history.epochs] == errors[:n_run]
    assert history.kept_epoch == (best if keep == "best" else n_run)
    assert history.stop_reason == (f"no better validation RMSE in {patience} epochs" if stopped else "all epochs done")


KEEP_BEST_CASES = {
    # one cluster a view is worse than anything before; pruning in the second epoch leaves time to overfit
    "pruned-after-the-best": {"epochs": 6, "prune_start": 6, "prune_threshold": 0.9, "min_clusters": 1},
    "pruned-before-the-best": {"epochs": 16, "prune_start": 2, "weight_l2": 0.0},
    "not-pruned": {"epochs": 16, "prune": False, "weight_l2": 0.0},
}


class KeepStates(Callback):
    """Copies the parameters of every epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.at_the_end: dict[str, torch.Tensor] = {}

    def on_epoch_end(self, record: EpochRecord, model: RatingModel) -> None:
        self.model = model
        self.states.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_train_end(self, history: TrainingHistory) -> None:
        self.at_the_end = {name: p.detach().clone() for name, p in self.model.named_parameters()}


@pytest.mark.parametrize("settings", KEEP_BEST_CASES.values(), ids=KEEP_BEST_CASES)
def test_keep_best_restores_the_best_epoch(
    train: RatingsDataset, validation: RatingsDataset, settings: dict[str, Any]
) -> None:
    keeper = KeepStates()
    rates = {"learning_rate": 0.2, "learning_rate_centers": 0.2, "learning_rate_schedule": "constant"}
    options = rates | {"prune_threshold": 0.25, "keep": "best"} | settings
    model, history = run(train, "mfdmc", validation, (keeper,), **options)
    errors = [record.valid_rmse for record in history.epochs]
    kept = history.epochs[history.kept_epoch - 1]
    assert history.kept_epoch == 1 + int(np.argmin(errors)) < len(errors)
    if settings.get("prune", True):
        pruned_before = history.prune_events[0].epoch <= history.kept_epoch
        assert pruned_before == (settings["prune_start"] == 2)
    assert (model.clusters("user"), model.clusters("item")) == (kept.clusters_user, kept.clusters_item)
    assert evaluate_dataset(model, validation, train.scale) == {"rmse": kept.valid_rmse, "mae": kept.valid_mae}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, keeper.states[history.kept_epoch - 1][name])
        assert torch.equal(parameter, keeper.at_the_end[name])
        assert parameter.grad is None
    for name, side in model.prunable_sides().items():
        gone = {(e.view, e.cluster) for e in history.prune_events if e.side == name and e.epoch <= kept.epoch}
        expected = tuple(tuple(k for k in range(5) if (view, k) not in gone) for view in range(2))
        assert side.cluster_ids == expected
    # what was restored can be trained on
    fit(model, train, validation)


class Recorder(Callback):
    """Writes down every call."""

    def __init__(self, name: str, log: list[tuple[Any, ...]], stop_after: int | None = None) -> None:
        self.name, self.log, self.stop_after = name, log, stop_after

    def on_train_start(self, model: RatingModel, n_batches: int, epochs: int) -> None:
        self.log.append((self.name, "start", n_batches, epochs))

    def on_batch_end(self, epoch: int, batch: int) -> None:
        self.log.append((self.name, "batch", epoch, batch))

    def on_epoch_end(self, record: EpochRecord, model: RatingModel) -> bool | None:
        self.log.append((self.name, "epoch", record.epoch))
        return record.epoch == self.stop_after if self.stop_after else None

    def on_train_end(self, history: TrainingHistory) -> None:
        self.log.append((self.name, "end", len(history.epochs), history.kept_epoch))

    def close(self) -> None:
        self.log.append((self.name, "close"))


def test_order_of_the_callbacks(train: RatingsDataset) -> None:
    log: list[tuple[Any, ...]] = []
    run(train, callbacks=(Recorder("a", log), Recorder("b", log)), epochs=2, batch_size=250)
    expected = [("start", 2, 2)]
    for epoch in (1, 2):
        expected += [("batch", epoch, 1), ("batch", epoch, 2), ("epoch", epoch)]
    expected += [("end", 2, 2), ("close",)]
    assert log == [(name, *call) for call in expected for name in ("a", "b")]


@pytest.mark.parametrize("stopper", ["a", "b"])
def test_a_callback_can_stop_training(train: RatingsDataset, stopper: str) -> None:
    log: list[tuple[Any, ...]] = []
    callbacks = tuple(Recorder(name, log, stop_after=2 if name == stopper else None) for name in ("a", "b"))
    _, history = run(train, callbacks=callbacks, epochs=5, batch_size=500)
    assert len(history.epochs) == history.kept_epoch == 2
    assert history.stop_reason == "a callback asked to stop after epoch 2"
    # both see the last epoch, the end and the closing
    for name in ("a", "b"):
        assert [call[1:] for call in log if call[0] == name][-3:] == [("epoch", 2), ("end", 2, 2), ("close",)]


def test_the_record_of_a_callback_is_that_of_the_history(train: RatingsDataset) -> None:
    seen = []

    class Collector(Callback):
        def on_epoch_end(self, record: EpochRecord, model: RatingModel) -> None:
            assert model.clusters("user") == record.clusters_user
            seen.append(record)

    _, history = run(train, callbacks=(Collector(),))
    assert seen == history.epochs


@pytest.mark.parametrize("hook", ["on_train_start", "on_batch_end", "on_epoch_end", "on_train_end"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "interrupt"])
def test_callbacks_are_closed_when_training_raises(
    train: RatingsDataset, monkeypatch: pytest.MonkeyPatch, hook: str, error: type[BaseException]
) -> None:
    log: list[tuple[Any, ...]] = []
    first, second = Recorder("a", log), Recorder("b", log)

    def fail(*_: object) -> None:
        raise error("in the middle")

    monkeypatch.setattr(first, hook, fail)
    torch.set_num_threads(2)
    with pytest.raises(error, match="in the middle"):
        run(train, callbacks=(first, second), epochs=1, batch_size=500)
    assert log[-2:] == [("a", "close"), ("b", "close")]
    assert torch.get_num_threads() == 2


def test_callbacks_are_closed_when_training_diverges(train: RatingsDataset) -> None:
    log: list[tuple[Any, ...]] = []
    with pytest.raises(TrainingDiverged):
        run(train, callbacks=(Recorder("a", log),), learning_rate_centers=1e25)
    assert log[-1] == ("a", "close")
    assert not any(call[1] == "end" for call in log)


def test_every_callback_is_closed_also_when_closing_one_fails(train: RatingsDataset) -> None:
    log: list[tuple[Any, ...]] = []

    class Broken(Callback):
        def close(self) -> None:
            raise RuntimeError("cannot close")

    with pytest.raises(RuntimeError, match="cannot close"):
        run(train, callbacks=(Broken(), Recorder("b", log)), epochs=1)
    assert log[-1] == ("b", "close")


@pytest.mark.parametrize("worth_threads", [True, False], ids=["large", "small"])
def test_the_reference_trains_small_models_on_one_thread(
    train: RatingsDataset, monkeypatch: pytest.MonkeyPatch, worth_threads: bool
) -> None:
    seen = []

    class Watcher(Callback):
        def on_batch_end(self, epoch: int, batch: int) -> None:
            seen.append(torch.get_num_threads())

    if worth_threads:
        monkeypatch.setattr(epochs, "_PARAMETERS_WORTH_THREADS", 1)
    torch.set_num_threads(2)
    run(train, callbacks=(Watcher(),), epochs=1, backend="reference")
    assert set(seen) == {2 if worth_threads else 1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("kind", "settings", "cause"),
    [
        ("mfdmc", {"learning_rate_centers": 1e25}, r"centers reach 1e\+25 at a learning rate of 1e\+25"),
        ("mfdmc", {"learning_rate_biases": 1e25}, r"biases reach 1e\+25 at a learning rate of 1e\+25"),
        ("funkmf", {"learning_rate": 1e25}, r"factors reach \S+e\+24 at a learning rate of 1e\+25"),
    ],
    ids=["centers", "biases", "factors"],
)
def test_a_learning_rate_that_diverges_is_named(
    train: RatingsDataset, kind: str, settings: dict[str, Any], cause: str
) -> None:
    message = rf"^the loss became (inf|nan) in epoch 1, batch 2 of 4: {cause}.*probably too high"
    with pytest.raises(TrainingDiverged, match=message):
        run(train, kind, **settings)


def test_divergence_in_a_later_epoch_is_placed_there(train: RatingsDataset) -> None:
    with pytest.raises(TrainingDiverged, match="in epoch 2, batch 1 of 1"):
        run(train, batch_size=1000, learning_rate_centers=1e25)


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan], ids=["huge", "inf", "nan"])
@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
def test_ratings_that_diverge_are_named(train: RatingsDataset, kind: str, value: float) -> None:
    ratings = train.ratings.copy()
    ratings[7] = value
    spoilt = dataclasses.replace(train, ratings=ratings)
    model = make_model(train, kind, batch_size=1000)
    with pytest.raises(TrainingDiverged, match=r"the loss became (inf|nan) in epoch 1, batch 1 of 1: ratings "):
        fit(model, spoilt)


def test_divergence_in_the_very_last_step_is_noticed(train: RatingsDataset) -> None:
    model = make_model(train, epochs=1, batch_size=1000, learning_rate=1e38, learning_rate_centers=1e38)
    with pytest.raises(TrainingDiverged):
        fit(model, train)


def test_weight_schedules_take_effect_epoch_by_epoch(train: RatingsDataset) -> None:
    options = {"learning_rate_schedule": "constant", "prune": False}
    scheduled, zero, one = "0:1:3", 0.0, 1.0
    after_first = [run(train, epochs=1, weight_entropy=w, **options)[0] for w in (scheduled, zero, one)]
    assert same_parameters(after_first[0], after_first[1])
    assert not same_parameters(after_first[0], after_first[2])
    after_second = [run(train, epochs=2, weight_entropy=w, **options)[0] for w in (scheduled, zero)]
    assert not same_parameters(*after_second)


def test_the_total_of_a_record_has_the_weights_of_its_epoch(train: RatingsDataset) -> None:
    weights = {
        "weight_spread": "1:0:3",
        "weight_proximity": "0:0.5:2",
        "weight_entropy": 0.3,
        "weight_l2": "0.1:0.3:3",
        "weight_bias_l2": 0.5,
    }
    _, history = run(train, **weights)
    for record in history.epochs:
        terms = dict(record.loss)
        total = terms.pop("total")
        expected = terms.pop("mse") + sum(
            weight_at(weights[f"weight_{name}"], record.epoch) * v for name, v in terms.items()
        )
        assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1000, 128, 7])
def test_the_loss_of_a_record_is_the_mean_over_the_ratings(train: RatingsDataset, batch_size: int) -> None:
    # steps so small that the parameters stay
    rates = dict.fromkeys(("learning_rate", "learning_rate_centers", "learning_rate_biases"), 1e-30)
    model, history = run(train, epochs=1, batch_size=batch_size, **rates)
    errors = predict_rows(model, train.user_idx, train.item_idx).astype(float) - train.ratings
    loss = history.epochs[0].loss
    assert loss["mse"] == pytest.approx((errors**2).mean(), rel=1e-5)
    scales = [model.native_parameters(s).l2_scale for s in ("user", "item")]
    squares = [(model.embeddings(s).square().sum(1) * c).numpy() for s, c in zip(("user", "item"), scales, strict=True)]
    expected = (squares[0][train.user_idx] + squares[1][train.item_idx]).mean()
    assert loss["l2"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("constant", 1.0), ("one-cycle", 0.0)])
def test_learning_rate_factor_at_the_end(train: RatingsDataset, schedule: str, last: float) -> None:
    _, history = run(train, learning_rate_schedule=schedule)
    assert history.epochs[-1].learning_rate_factor == pytest.approx(last, abs=1e-9)
    if schedule == "cosine":
        assert [r.learning_rate_factor for r in history.epochs] == pytest.approx([0.75, 0.25, 0.0], abs=1e-9)


def test_history_of_a_run(train: RatingsDataset) -> None:
    _, history = run(train)
    assert [record.epoch for record in history.epochs] == [1, 2, 3]
    assert history.backend == ("reference" if native.why_unavailable() else "cpu")
    assert history.batch_size == 128
    assert history.stop_reason == "all epochs done"
    assert history.kept_epoch == 3
    assert history.seconds >= sum(record.seconds for record in history.epochs) > 0
    assert run(train, batch_size=None, epochs=1)[1].batch_size == 1024


def test_pruning_is_recorded(train: RatingsDataset) -> None:
    model, history = run(train, epochs=4)
    assert {event.epoch for event in history.prune_events} >= {2}
    assert all(event.epoch >= 2 and event.usage < 0.22 for event in history.prune_events)
    for record in history.epochs:
        for name, clusters in (("user", record.clusters_user), ("item", record.clusters_item)):
            gone = [e.view for e in history.prune_events if e.side == name and e.epoch <= record.epoch]
            assert clusters == [5 - gone.count(view) for view in range(2)]
    for name, side in model.prunable_sides().items():
        for view, ids in enumerate(side.cluster_ids):
            gone = {e.cluster for e in history.prune_events if (e.side, e.view) == (name, view)}
            assert gone.isdisjoint(ids)
            assert gone | set(ids) == set(range(5))
            assert len(ids) >= 2


@pytest.mark.parametrize(
    "settings",
    [{"prune": False}, {"prune_start": 4}, {"prune_threshold": 0.0}, {"min_clusters": 5}],
    ids=["off", "later", "threshold-0", "minimum"],
)
def test_nothing_to_prune(train: RatingsDataset, settings: dict[str, Any]) -> None:
    model, history = run(train, **settings)
    assert history.prune_events == []
    assert model.clusters("user") == history.epochs[-1].clusters_item == [5, 5]


def test_funkmf_has_no_clusters_in_its_history(train: RatingsDataset) -> None:
    _, history = run(train, "funkmf")
    assert history.prune_events == []
    assert {(record.clusters_user, record.clusters_item) for record in history.epochs} == {(None, None)}
    assert {name for name, value in history.epochs[0].loss.items() if value == 0} == {"spread", "proximity", "entropy"}


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
@pytest.mark.parametrize("watched", [True, False], ids=["validation", "no-validation"])
def test_history_survives_json(train: RatingsDataset, validation: RatingsDataset, kind: str, watched: bool) -> None:
    _, history = run(train, kind, validation if watched else None)
    again = TrainingHistory.from_dict(json.loads(json.dumps(history.to_dict())))
    assert again == history
    assert isinstance(again.epochs[0], EpochRecord)
    assert [type(event) for event in again.prune_events] == [PruneEvent] * len(history.prune_events)
    assert bool(again.prune_events) == (kind == "mfdmc")
    assert TrainingHistory.from_dict(TrainingHistory().to_dict()) == TrainingHistory()


def test_one_user_with_all_ratings() -> None:
    dataset = make_dataset([0] * 12, list(range(12)), [float(1 + k % 5) for k in range(12)], sizes=(2, 12))
    model = make_model(dataset, epochs=30, batch_size=4, prune=False)
    before = {name: p.detach().clone() for name, p in model.user.named_parameters()}
    history = fit(model, dataset)
    assert history.epochs[-1].loss["mse"] < 0.5 * history.epochs[0].loss["mse"]
    # nothing is known of the other user, whose rows must stay as they were
    assert torch.equal(model.user.assignment_logits[1], before["assignment_logits"][1])
    assert model.user.bias[1] == 0
    assert not torch.equal(model.user.assignment_logits[0], before["assignment_logits"][0])


@pytest.mark.parametrize("side", ["user", "item"])
def test_entities_without_ratings_do_not_count_for_pruning(side: SideName) -> None:
    rated, others = [0, 1, 0, 1], [0, 1, 1, 0]
    dataset = make_dataset(rated, others, [1.0, 2.0, 3.0, 4.0], sizes=(6, 6))
    model = make_model(dataset, n_clusters=3, epochs=1, prune_start=1, min_clusters=2, prune_threshold=0.2)
    table = model.prunable_sides()[side].assignment_logits
    with torch.no_grad():
        table[:, [0, 3]] = torch.tensor([-20.0] * 2 + [20.0] * 4)[:, None]
    fit(model, dataset)
    assert list(model.prunable_sides()[side].cluster_ids) == [(1, 2), (1, 2)]


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
def test_one_rating(kind: str) -> None:
    dataset = make_dataset([1], [0], [4.0], sizes=(2, 2))
    model = make_model(dataset, kind, epochs=2, batch_size=None)
    history = fit(model, dataset, dataset)
    assert history.epochs[-1].valid_rmse == 0.0  # clipped to the only rating there is
    assert np.isfinite(all_predictions(model)).all()


def test_smallest_model_and_batches(train: RatingsDataset) -> None:
    few = train.take(np.arange(20))
    model, history = run(few, n_views=1, n_clusters=1, view_dim=1, batch_size=1, min_clusters=1, epochs=2)
    assert np.isfinite(all_predictions(model)).all()
    assert history.epochs[0].loss["entropy"] == history.epochs[0].loss["spread"] == 0.0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, a call held its arguments to the end")
def test_unsorted_ratings_that_nobody_else_holds_are_let_go(train: RatingsDataset) -> None:
    unsorted: list[weakref.ref[RatingsDataset]] = []

    def made() -> RatingsDataset:
        dataset = train.take(np.arange(len(train))[::-1])
        unsorted.append(weakref.ref(dataset))
        return dataset

    class Look(Callback):
        def on_train_start(self, model: RatingModel, n_batches: int, epochs: int) -> None:
            assert unsorted[0]() is None

    fit(make_model(train, epochs=1), made(), callbacks=(Look(),))
    assert len(unsorted) == 1


def test_no_ratings_or_unknown_ids_are_refused(train: RatingsDataset) -> None:
    log: list[tuple[Any, ...]] = []
    with pytest.raises(DataError, match="there are no ratings to train on"):
        fit(make_model(train), train.take(np.arange(0)), callbacks=(Recorder("a", log),))
    assert log == [("a", "close")]
    unknown = dataclasses.replace(train, user_idx=np.full(len(train), -1))
    with pytest.raises(DataError, match="ids that are not in the vocabularies"):
        fit(make_model(train), unknown)


def test_unknown_backend_is_refused_before_training(train: RatingsDataset) -> None:
    model = make_model(train, backend="gpu")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        fit(model, train)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
