"""The fit loop: epochs, batches, validation, early stopping, pruning, callbacks → history."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast import metrics
from mfdmc_fast.checkpoints import Checkpoint, Checkpoints, digest
from mfdmc_fast.config import MFDMCConfig, TrainingConfig, with_l2, with_rates
from mfdmc_fast.content_checks import check_run
from mfdmc_fast.data.batches import BatchIterator, default_batch_size
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import StreamedRatings
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.errors import ConfigError, TrainingDiverged
from mfdmc_fast.model import MFDMCModel, Predictor, RatingModel, SideName
from mfdmc_fast.optim import OptimizerState, likely_cause, rate_factor
from mfdmc_fast.plain_values import check_fields
from mfdmc_fast.pruning import COLLAPSE_EPOCHS, ClusterPruning, PruneEvent, warn_of_collapse
from mfdmc_fast.scoring import predict_rows


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
        epoch: the first is 1.
        seconds: wall time of the epoch, validation included.
        loss: mean over the epoch's ratings of each loss term, unweighted; `total` is weighted.
        learning_rate_factor: factor on all learning rates at the end of the epoch.
        valid_rmse, valid_mae: rating points, predictions clipped to the rating scale; None without validation ratings.
        clusters_user, clusters_item: active clusters of each view after pruning; None for models without clusters.
    """

    epoch: int
    seconds: float
    loss: dict[str, float]
    learning_rate_factor: float
    valid_rmse: float | None
    valid_mae: float | None
    clusters_user: list[int] | None
    clusters_item: list[int] | None


@dataclass
class TrainingHistory:
    """Everything a run wants remembered.

    Attributes:
        epochs: one record per epoch that was run.
        prune_events: every removed cluster, in order.
        backend: kernels that computed the loss.
        batch_size: ratings per step.
        stop_reason: why training ended; empty until then.
        kept_epoch: the epoch whose parameters the model has.
        seconds: wall time of the whole run; of a resumed one, without what was lost.
        teacher_seconds: of which the teacher took; 0 without one.
        streamed: whether the ratings stayed in the files of a store.
        train_rmse: of the kept parameters on the training ratings, a teacher's student included; None where a model
            has none. How far a rating lies from its prediction, as fold-in takes it.
        n_users, n_items: rows that were trained; those of the model beyond them were folded in. 0: not recorded.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    prune_events: list[PruneEvent] = field(default_factory=list)
    backend: str = ""
    batch_size: int = 0
    stop_reason: str = ""
    kept_epoch: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    streamed: bool = False
    train_rmse: float | None = None
    n_users: int = 0
    n_items: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingHistory:
        """Inverse of `to_dict`; raises a built-in error for values that `to_dict` never gives."""
        rest = {k: v for k, v in values.items() if k not in ("epochs", "prune_events")}
        history = cls(
            epochs=[EpochRecord(**record) for record in values["epochs"]],
            prune_events=[PruneEvent(**event) for event in values["prune_events"]],
            **rest,
        )
        check_fields(history)
        return history


class Callback:
    """Base class of callbacks; override what you need. Callbacks must not change the model."""

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

    Args:
        model: its rows are those of the dataset's vocabularies.
        train: encoded ratings without unknown ids. Unless they are in (user, item) order, `RatingsDataset.sorted`
            copies them, and memory for both is needed unless the caller lets go of it. Streamed ones stay in their
            files; the result is the same, bit by bit.
        validation: watched each epoch, never trained on; unknown ids get the documented fallback.
        callbacks: called in order.
        scale: lowest and highest rating, to which predictions are clipped for validation; None: those of `train`.
        checkpoints: where the state of the run goes after some epochs and at the end, and from where it is resumed;
            entered.

    Returns:
        The history. Deterministic: the same seed, data, versions and backend give bit-identical parameters (the
        reference, on tables of millions of numbers, for the same number of threads), also where the run was killed and
        resumed.

    Raises:
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


@dataclass
class _Run:
    """What changes while a model is trained, which is what a checkpoint holds.

    Attributes:
        model, optimizer: with its parameters, cluster ids and optimizer state.
        history: of the epochs so far.
        best_epoch: the one with the lowest validation RMSE; 0 where there is none.
        epochs_without_gain: since then.
        best: the model after that epoch, where it is to be kept.
    """

    model: RatingModel
    optimizer: OptimizerState
    history: TrainingHistory
    best_epoch: int = 0
    epochs_without_gain: int = 0
    best: _Snapshot | None = None

    def judge(self, record: EpochRecord) -> None:
        """See whether an epoch is the best so far."""
        if record.valid_rmse is None:
            return
        self.epochs_without_gain += 1
        best = self.history.epochs[self.best_epoch - 1].valid_rmse if self.best_epoch else None
        if best is None or record.valid_rmse < best:
            self.best_epoch, self.epochs_without_gain = record.epoch, 0
            if self.model.config.keep == "best":
                self.best = _Snapshot.of(self.model).copy()

    def save(self, checkpoints: Checkpoints, seconds: float) -> None:
        """Write a checkpoint of a run that has taken this long."""
        now = _Snapshot.of(self.model)
        state = {
            "history": self.history.to_dict() | {"seconds": seconds},
            "cluster_ids": now.cluster_ids,
            "best_epoch": self.best_epoch,
            "epochs_without_gain": self.epochs_without_gain,
            "best_cluster_ids": self.best.cluster_ids if self.best else None,
        }
        tensors = {f"model.{name}": tensor for name, tensor in now.parameters.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.parameters.items()}
        for name, parameter in self.model.named_parameters():
            of_parameter = self.optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in of_parameter.items()}
        checkpoints.save_epoch(len(self.history.epochs), state, {name: t.cpu() for name, t in tensors.items()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run."""
        state = checkpoint.state
        self.history = TrainingHistory.from_dict(state["history"])
        self.best_epoch, self.epochs_without_gain = state["best_epoch"], state["epochs_without_gain"]
        tensors = {name: tensor.to(self.model.device) for name, tensor in checkpoint.tensors.items()}
        if state["best_cluster_ids"] is not None:
            self.best = _Snapshot(_below("best", tensors), _tuples(state["best_cluster_ids"]))
        _Snapshot(_below("model", tensors), _tuples(state["cluster_ids"])).restore(self.model)
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = _below(f"optimizer.{name}", tensors)


@dataclass(frozen=True)
class _Snapshot:
    """The parameters of a model, and the original numbers of its clusters, view by view."""

    parameters: dict[str, Tensor]
    cluster_ids: dict[SideName, tuple[tuple[int, ...], ...]]

    @classmethod
    def of(cls, model: RatingModel) -> _Snapshot:
        """Those of now; the tensors are the model's own."""
        return cls(
            {name: p.detach() for name, p in model.named_parameters()},
            {name: side.cluster_ids for name, side in model.prunable_sides().items()},
        )

    def copy(self) -> _Snapshot:
        """With tensors of its own, which training leaves alone."""
        return _Snapshot({name: tensor.clone() for name, tensor in self.parameters.items()}, self.cluster_ids)

    def restore(self, model: RatingModel) -> None:
        for name, parameter in model.named_parameters():
            parameter.data = self.parameters[name]
            parameter.grad = None
        for name, side in model.prunable_sides().items():
            side.cluster_ids = self.cluster_ids[name]


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
    batches = BatchIterator(train, batch_size, config.seed, config.device)
    scale = scale or train.scale
    history = TrainingHistory(
        backend=model.training_backend, batch_size=batches.batch_size, streamed=isinstance(train, StreamedRatings)
    )
    epochs = make_epochs(model, batches, history.backend)
    watch = None if validation is None else _watch(model, validation, scale, history.backend)
    pruning = _pruning_of(config)
    trained = {side: torch.from_numpy(of_side > 0).to(model.device) for side, of_side in counts.items()}
    run = _Run(model, epochs.optimizer, history)
    saved = (
        None if checkpoints is None else _last_checkpoint(checkpoints, run, train, validation, scale, batches.n_batches)
    )
    if saved is not None:
        run.restore(saved)
        history = run.history
    start -= history.seconds
    for callback in callbacks:
        callback.on_train_start(model, batches.n_batches, config.epochs)
        if saved is not None:
            callback.on_resume(len(history.epochs), str(saved.path))

    while not history.stop_reason:
        epoch, epoch_start = len(history.epochs) + 1, time.perf_counter()
        loss = epochs.run(epoch, callbacks)
        if not _is_finite(model):
            # the loss was finite in every batch, so it was the last step
            raise TrainingDiverged(
                f"parameters became NaN or infinite in the last step of epoch {epoch}: "
                + likely_cause(train.scale, epochs.optimizer)
            )
        if pruning is not None:
            history.prune_events += pruning.after_epoch(epoch, model, epochs.optimizer, trained)
            if epoch == min(pruning.start + COLLAPSE_EPOCHS - 1, config.epochs):
                warn_of_collapse(history.prune_events, model.config)
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
        if any([callback.on_epoch_end(record, model) for callback in callbacks]):  # noqa: C419
            history.stop_reason = f"a callback asked to stop after epoch {epoch}"
        elif config.patience is not None and run.epochs_without_gain >= config.patience:
            history.stop_reason = f"no better validation RMSE in {config.patience} epochs"
        elif epoch == config.epochs:
            history.stop_reason = "all epochs done"
        if checkpoints is not None and (history.stop_reason or checkpoints.due(epoch)):
            run.save(checkpoints, time.perf_counter() - start)

    history.kept_epoch = len(history.epochs)
    if run.best is not None:
        history.kept_epoch = run.best_epoch
        run.best.restore(model)
    if dtype != "float32":
        model.float()
    history.seconds = time.perf_counter() - start
    return history


def _last_checkpoint(
    checkpoints: Checkpoints,
    run: _Run,
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
        check_run(found, history, run.history, run.model, run.optimizer, n_batches)

    return checkpoints.last(check)


def digest_of(ratings: RatingsDataset | StreamedRatings) -> str:
    """What tells these ratings, in this order, from others, in memory and on disk alike."""
    return digest(column for part in ratings.parts() for column in part)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _tuples(cluster_ids: dict[SideName, list[list[int]]]) -> dict[SideName, tuple[tuple[int, ...], ...]]:
    return {side: tuple(tuple(of_view) for of_view in views) for side, views in cluster_ids.items()}


def _watch(
    model: RatingModel, validation: RatingsDataset, scale: tuple[float, float], backend: str
) -> Callable[[], dict[str, float]]:
    """What gives the validation errors of an epoch."""
    if backend == "triton" and isinstance(model, MFDMCModel):
        from mfdmc_fast.device_validation import DeviceValidation

        return DeviceValidation(model, validation, scale).errors
    return lambda: evaluate_dataset(model, validation, scale)


def _is_finite(model: RatingModel) -> bool:
    if model.device.type != "cpu" or next(model.parameters()).dtype == torch.bfloat16:  # which numpy does not know
        return bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())
    # not by torch, whose threads wait for more work on cores that the next epoch needs
    return all(bool(np.isfinite(p.detach().numpy()).all()) for p in model.parameters())


def _pruning_of(config: TrainingConfig) -> ClusterPruning | None:
    if not isinstance(config, MFDMCConfig) or not config.prune:
        return None
    return ClusterPruning(config.prune_start, config.prune_threshold, config.min_clusters)
