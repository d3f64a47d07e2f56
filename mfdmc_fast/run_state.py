"""The state of a run of training between two epochs, which is what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mfdmc_fast.checkpoints import Checkpoint, Checkpoints
from mfdmc_fast.distributed import Processes
from mfdmc_fast.history import EpochRecord, TrainingHistory
from mfdmc_fast.model import RatingModel, SideName
from mfdmc_fast.optim import OptimizerState
from mfdmc_fast.sharding import ShardedRows


@dataclass
class Run:
    """What changes while a model is trained, which is what a checkpoint holds.

    Attributes:
        model, optimizer: with its parameters, cluster ids and optimizer state.
        rows: which of them this process has.
        processes: whose they are.
        history: of the epochs so far.
        best_epoch: the one with the lowest validation RMSE; 0 where there is none.
        epochs_without_gain: since then.
        best: the model after that epoch, where it is to be kept.
    """

    model: RatingModel
    optimizer: OptimizerState
    rows: ShardedRows
    processes: Processes
    history: TrainingHistory
    best_epoch: int = 0
    epochs_without_gain: int = 0
    best: Snapshot | None = None

    def judge(self, record: EpochRecord) -> None:
        """See whether an epoch is the best so far."""
        if record.valid_rmse is None:
            return
        self.epochs_without_gain += 1
        best = self.history.epochs[self.best_epoch - 1].valid_rmse if self.best_epoch else None
        if best is None or record.valid_rmse < best:
            self.best_epoch, self.epochs_without_gain = record.epoch, 0
            if self.model.config.keep == "best":
                self.best = Snapshot.of(self.model).copy()

    def save(self, checkpoints: Checkpoints | None, seconds: float) -> None:
        """Write a checkpoint of a run that has taken this long; `checkpoints` is that of process 0, None in others."""
        now = Snapshot.of(self.model)
        state = {
            "history": self.history.to_dict() | {"seconds": seconds},
            "cluster_ids": now.cluster_ids,
            "best_epoch": self.best_epoch,
            "epochs_without_gain": self.epochs_without_gain,
            "best_cluster_ids": self.best.cluster_ids if self.best else None,
        }
        # by their names in the file: the parameter that they belong to, and the tensor
        tensors = {f"model.{name}": (name, tensor) for name, tensor in now.parameters.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": (name, tensor) for name, tensor in self.best.parameters.items()}
        for name, parameter in self.model.named_parameters():
            of_parameter = self.optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": (name, tensor) for key, tensor in of_parameter.items()}
        whole = {key: self.rows.to_first(*of_key) for key, of_key in tensors.items()}
        if checkpoints is not None:
            found = {key: tensor.cpu() for key, tensor in whole.items() if tensor is not None}
            checkpoints.save_epoch(len(self.history.epochs), state, found)

    def restore(self, checkpoint: Checkpoint | None) -> str | None:
        """Continue from a checkpoint of the same run, that of process 0; the others give None. Returns its path, None
        where process 0 has none.
        """
        header, loaded = None, checkpoint.tensors if checkpoint else {}
        if checkpoint is not None:
            kinds = {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in loaded.items()}
            header = [str(checkpoint.path), checkpoint.state, kinds]
        header = self.processes.from_first(header)
        if header is None:
            return None
        source, state, kinds = header
        names = [name for name, _ in self.model.named_parameters()]
        self.history = TrainingHistory.from_dict(state["history"])
        self.best_epoch, self.epochs_without_gain = state["best_epoch"], state["epochs_without_gain"]
        tensors = {}
        for key, (dtype, shape) in kinds.items():
            name = next(name for name in names if key.partition(".")[2] in (name, f"{name}.{key.rpartition('.')[2]}"))
            tensors[key] = self.rows.from_first(name, loaded.get(key), dtype, shape).to(self.model.device)
        if state["best_cluster_ids"] is not None:
            self.best = Snapshot(_below("best", tensors), _tuples(state["best_cluster_ids"]))
        Snapshot(_below("model", tensors), _tuples(state["cluster_ids"])).restore(self.model)
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = _below(f"optimizer.{name}", tensors)
        return str(source)


@dataclass(frozen=True)
class Snapshot:
    """The parameters of a model, and the original numbers of its clusters, view by view."""

    parameters: dict[str, Tensor]
    cluster_ids: dict[SideName, tuple[tuple[int, ...], ...]]

    @classmethod
    def of(cls, model: RatingModel) -> Snapshot:
        """Those of now; the tensors are the model's own."""
        return cls(
            {name: p.detach() for name, p in model.named_parameters()},
            {name: side.cluster_ids for name, side in model.prunable_sides().items()},
        )

    def copy(self) -> Snapshot:
        """With tensors of its own, which training leaves alone."""
        return Snapshot({name: tensor.clone() for name, tensor in self.parameters.items()}, self.cluster_ids)

    def restore(self, model: RatingModel) -> None:
        for name, parameter in model.named_parameters():
            parameter.data = self.parameters[name]
            parameter.grad = None
        for name, side in model.prunable_sides().items():
            side.cluster_ids = self.cluster_ids[name]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _tuples(cluster_ids: dict[SideName, list[list[int]]]) -> dict[SideName, tuple[tuple[int, ...], ...]]:
    return {side: tuple(tuple(of_view) for of_view in views) for side, views in cluster_ids.items()}
