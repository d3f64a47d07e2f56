"""The fit loop: epochs, batches, validation, early stopping, pruning, callbacks → history."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from mfdmc_fast import __version__, metrics
from mfdmc_fast.checkpoints import Checkpoint, Checkpoints, digest
from mfdmc_fast.config import MFDMCConfig, TrainingConfig, with_l2, with_rates
from mfdmc_fast.content_checks import check_run
from mfdmc_fast.data.batches import BatchIterator, default_batch_size
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import StreamedRatings
from mfdmc_fast.distributed import Processes, Shard
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.errors import ConfigError, TrainingDiverged
from mfdmc_fast.history import EpochRecord, TrainingHistory
from mfdmc_fast.model import MFDMCModel, Predictor, RatingModel
from mfdmc_fast.optim import likely_cause, rate_factor
from mfdmc_fast.pruning import COLLAPSE_EPOCHS, ClusterPruning, warn_of_collapse
from mfdmc_fast.run_state import Run
from mfdmc_fast.scoring import predict_rows
from mfdmc_fast.sharding import ShardedRows


class Callback:
    """Base class of callbacks; override what you need. Callbacks must not change the model.

    Where several processes train, each has its callbacks, and the model that they get has the rows of its own users
    alone; those of other processes' items are as they were when all were last brought together.
    """

    def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
        """After each sweep of a Bayesian teacher, before the first epoch; the first sweep is 1."""

    def on_train_start(self, model: Predictor, n_batches: int, epochs: int) -> None:
        """Before the first epoch."""

    def on_resume(self, epoch: int, source: str) -> None:
        """Where a run continues from a checkpoint: after `on_train_start` with the last epoch that is done, or, with
        epoch 0, in place of the sweeps of a teacher whose predictions are known.
        """

    def on_batch_end(self, epoch: int, batch: int) -> None:
        """After each step; the first batch of an epoch is 1."""

    def on_epoch_end(self, record: EpochRecord, model: Predictor) -> bool | None:
        """After each epoch, its validation and pruning; return True to stop training."""
        return None

    def on_train_end(self, history: TrainingHistory) -> None:
        """After the last epoch, when the kept parameters are in place."""

    def close(self) -> None:
        """Last of all, also where training failed or was interrupted."""


def fit(
    model: RatingModel,
    train: RatingsDataset | StreamedRatings,
    validation: RatingsDataset | None = None,
    callbacks: Sequence[Callback] = (),
    scale: tuple[float, float] | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainingHistory:
    """Train a model in place with the settings in `model.config`.

    In an initialized torch.distributed process group, all processes train one model: all call this with the same
    arguments, and all have the whole model afterwards.

    Args:
        model: its rows are those of the dataset's vocabularies.
        train: encoded ratings without unknown ids. Unless they are in (user, item) order, `RatingsDataset.sorted`
            copies them, and memory for both is needed unless the caller lets go of it. Streamed ones stay in their
            files; the result is the same, bit by bit.
        validation: watched each epoch, never trained on; unknown ids get the documented fallback.
        callbacks: called in order.
        scale: lowest and highest rating, to which predictions are clipped for validation; None: those of `train`.
        checkpoints: where the state of the run goes after some epochs and at the end, and from where it is resumed;
            entered. Of several processes, only number 0 gives them.

    Returns:
        The history. Deterministic: the same seed, data, versions and backend give bit-identical parameters (the
        reference, on tables of millions of numbers, for the same number of threads), also where the run was killed and
        resumed.

    Raises:
        ProcessEnded: another process of the group has ended.
        TrainingDiverged: the loss is NaN or infinite.
        ConfigError: early stopping or `keep="best"` without validation ratings; checkpoints of another run.
        DataError: a checkpoint cannot be written.
        BackendUnavailable: the requested backend cannot train this model.
    """
    config = model.config = with_rates(with_l2(model.config, len(train), sum(model.n_entities.values())))
    watched = validation is not None and len(validation) > 0
    if not watched and (config.patience is not None or config.keep == "best"):
        wanted = "patience" if config.patience is not None else "keep='best'"
        raise ConfigError(f"{wanted} needs validation ratings: pass validation= or set validation_fraction")

    try:
        train = train.sorted()  # here, so that the unsorted ratings can go
        history = _train(model, train, validation if watched else None, callbacks, scale, checkpoints)
        for callback in callbacks:
            callback.on_train_end(history)
    finally:
        with ExitStack() as closing:  # each is closed, whatever the others raise
            for callback in reversed(callbacks):
                closing.callback(callback.close)
    return history


def evaluate_dataset(model: RatingModel, dataset: RatingsDataset, scale: tuple[float, float]) -> dict[str, float]:
    """`rmse` and `mae` of clipped predictions, rating points; unknown ids get the documented fallback."""
    predictions = predict_rows(model, dataset.user_idx, dataset.item_idx, scale)
    return {"rmse": metrics.rmse(predictions, dataset.ratings), "mae": metrics.mae(predictions, dataset.ratings)}


def _train(
    model: RatingModel,
    train: RatingsDataset | StreamedRatings,
    validation: RatingsDataset | None,
    callbacks: Sequence[Callback],
    scale: tuple[float, float] | None,
    checkpoints: Checkpoints | None,
) -> TrainingHistory:
    start = time.perf_counter()
    config = model.config
    dtype = config.dtype if isinstance(config, MFDMCConfig) else "float32"
    if dtype != "float32":
        model.to(getattr(torch, dtype))
    # a teacher's pairs are several times the ratings, and a student that is free of noise gains from more steps
    taught = isinstance(config, MFDMCConfig) and config.teacher is not None
    batch_size = config.batch_size or default_batch_size(len(train), 40 if taught else 10)
    counts = train.counts
    model.set_l2_scales(counts)
    processes = Processes.current()
    if processes.size > 1:
        processes.agree(_given(model, train, validation, scale))
    shard = Shard.of(processes, len(train.users), len(train.items), len(train), lambda: train.user_offsets)
    rows = ShardedRows(model, shard)
    rows.take()
    batches = BatchIterator(train, batch_size, config.seed, config.device)
    scale = scale or train.scale
    history = TrainingHistory(
        backend=model.training_backend, batch_size=batches.batch_size, streamed=isinstance(train, StreamedRatings)
    )
    epochs = make_epochs(model, batches, history.backend, shard)
    watch = None if validation is None else _watch(model, validation, scale, history.backend, shard)
    pruning = _pruning_of(config)
    trained = {
        side: torch.from_numpy(of_side > 0).to(model.device) for side, of_side in shard.own_counts(counts).items()
    }
    run = Run(model, epochs.optimizer, rows, processes, history)
    saved = (
        None if checkpoints is None else _last_checkpoint(checkpoints, run, train, validation, scale, batches.n_batches)
    )
    resumed_from = run.restore(saved)
    history = run.history
    start -= history.seconds
    for callback in callbacks:
        callback.on_train_start(model, batches.n_batches, config.epochs)
        if resumed_from is not None:
            callback.on_resume(len(history.epochs), resumed_from)

    while not history.stop_reason:
        epoch, epoch_start = len(history.epochs) + 1, time.perf_counter()
        loss = epochs.run(epoch, callbacks)
        if processes.any(not _is_finite(model)):
            # the loss was finite in every batch, so it was the last step
            raise TrainingDiverged(
                f"parameters became NaN or infinite in the last step of epoch {epoch}: "
                + likely_cause(train.scale, epochs.optimizer)
            )
        if pruning is not None:
            rows.align_centers(epochs.optimizer.state)
            history.prune_events += pruning.after_epoch(epoch, model, epochs.optimizer, trained, processes)
            if processes.is_first and epoch == min(pruning.start + COLLAPSE_EPOCHS - 1, config.epochs):
                warn_of_collapse(history.prune_events, model.config)
        if watch is not None:
            rows.share_items()
        errors = None if watch is None else watch()
        record = EpochRecord(
            epoch=epoch,
            seconds=time.perf_counter() - epoch_start,
            loss=loss,
            learning_rate_factor=rate_factor(config.learning_rate_schedule, epoch, config.epochs),
            valid_rmse=errors["rmse"] if errors else None,
            valid_mae=errors["mae"] if errors else None,
            clusters_user=model.clusters("user"),
            clusters_item=model.clusters("item"),
        )
        history.epochs.append(record)
        run.judge(record)
        # every callback sees the epoch, also after one of them asked to stop
        wants_end = any([callback.on_epoch_end(record, model) for callback in callbacks])  # noqa: C419
        due = checkpoints is not None and checkpoints.due(epoch)
        told = processes.gather([wants_end, due, checkpoints is not None])  # process 0 decides on checkpoints
        if told[:, 0].any():
            history.stop_reason = f"a callback asked to stop after epoch {epoch}"
        elif config.patience is not None and run.epochs_without_gain >= config.patience:
            history.stop_reason = f"no better validation RMSE in {config.patience} epochs"
        elif epoch == config.epochs:
            history.stop_reason = "all epochs done"
        if told[0, 2] and (history.stop_reason or told[0, 1]):
            run.save(checkpoints, time.perf_counter() - start)

    history.kept_epoch = len(history.epochs)
    if run.best is not None:
        history.kept_epoch = run.best_epoch
        run.best.restore(model)
    rows.complete()
    if dtype != "float32":
        model.float()
    history.seconds = time.perf_counter() - start
    return history


def _last_checkpoint(
    checkpoints: Checkpoints,
    run: Run,
    train: RatingsDataset | StreamedRatings,
    validation: RatingsDataset | None,
    scale: tuple[float, float],
    n_batches: int,
) -> Checkpoint | None:
    """Where to continue, if anywhere; says what the run is given."""
    given: dict[str, Any] = run.model.config.to_dict() | {"backend": run.history.backend, "rating scale": list(scale)}
    for name, ratings in (("what it was trained on", train), ("validation ratings", validation)):
        given[name] = None if ratings is None else digest_of(ratings)
    checkpoints.identify(**given)

    def check(found: Checkpoint) -> None:
        history = TrainingHistory.from_dict(found.state["history"])
        check_run(found, history, run.history, run.model, run.optimizer, n_batches, run.rows.totals())

    return checkpoints.last(check)


def _given(
    model: RatingModel,
    train: RatingsDataset | StreamedRatings,
    validation: RatingsDataset | None,
    scale: tuple[float, float] | None,
) -> dict[str, str]:
    """What all processes of a run must be given, as texts that differ where it does."""
    ratings = train.store.fingerprint if isinstance(train, StreamedRatings) else digest_of(train)
    return {
        "version of mfdmc_fast": __version__,
        "training ratings": ratings,
        "validation ratings": "" if validation is None else digest_of(validation),
        "rating scale": str(scale),
        **{name: str(value) for name, value in model.config.to_dict().items() if name != "device"},
    }


def digest_of(ratings: RatingsDataset | StreamedRatings) -> str:
    """What tells these ratings, in this order, from others, in memory and on disk alike."""
    return digest(column for part in ratings.parts() for column in part)


def _watch(
    model: RatingModel, validation: RatingsDataset, scale: tuple[float, float], backend: str, shard: Shard
) -> Callable[[], dict[str, float]]:
    """What gives the validation errors of an epoch."""
    if shard.processes.size > 1:
        return lambda: _errors_of_all(model, validation, scale, shard)
    if backend == "triton" and isinstance(model, MFDMCModel):
        from mfdmc_fast.device_validation import DeviceValidation

        return DeviceValidation(model, validation, scale).errors
    return lambda: evaluate_dataset(model, validation, scale)


def _errors_of_all(
    model: RatingModel, validation: RatingsDataset, scale: tuple[float, float], shard: Shard
) -> dict[str, float]:
    """`evaluate_dataset` where every process scores the ratings of its users, and process 0 those of unknown ones."""
    users, own = validation.user_idx, shard.users
    mine = (users >= own.start) & (users < own.stop)
    if shard.processes.is_first:
        mine |= users < 0
    chosen = users[mine]
    predictions = predict_rows(model, np.where(chosen < 0, -1, chosen - own.start), validation.item_idx[mine], scale)
    errors = np.subtract(predictions, validation.ratings[mine], dtype=np.float64)
    squares, sizes = shard.processes.sum([np.square(errors).sum(), np.abs(errors).sum()]) / len(validation)
    return {"rmse": float(np.sqrt(squares)), "mae": float(sizes)}


def _is_finite(model: RatingModel) -> bool:
    if model.device.type != "cpu" or next(model.parameters()).dtype == torch.bfloat16:  # which numpy does not know
        return bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())
    # not by torch, whose threads wait for more work on cores that the next epoch needs
    return all(bool(np.isfinite(p.detach().numpy()).all()) for p in model.parameters())


def _pruning_of(config: TrainingConfig) -> ClusterPruning | None:
    if not isinstance(config, MFDMCConfig) or not config.prune:
        return None
    return ClusterPruning(config.prune_start, config.prune_threshold, config.min_clusters)
