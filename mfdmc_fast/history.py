"""What a run of training remembers: its epochs, what was pruned, and why it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mfdmc_fast.plain_values import check_fields
from mfdmc_fast.pruning import PruneEvent


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
