"""When and which clusters go, and the in-place compaction of everything that has a column or row per cluster."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.distributed import Processes
from mfdmc_fast.errors import ClustersCollapsed
from mfdmc_fast.model import RatingModel, Side, SideName
from mfdmc_fast.ops import functional
from mfdmc_fast.optim import OptimizerState


@dataclass(frozen=True)
class PruneEvent:
    """One removed cluster.

    Attributes:
        epoch: epoch after which it was removed (the first is 1).
        side: `user` or `item`.
        view: view number.
        cluster: its original number in the view.
        usage: mean assignment weight over the trained entities, under the threshold.
    """

    epoch: int
    side: SideName
    view: int
    cluster: int
    usage: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ClusterPruning:
    """Removes clusters whose usage is under a threshold, after each epoch from `start` on (the paper: 40).

    Usage is the mean assignment weight over the trained entities. The lowest go first, and `min_clusters` always stay
    in a view. The paper gives the rule; threshold (half of a uniform share of 10 clusters) and minimum are this
    project's.
    """

    start: int
    threshold: float
    min_clusters: int

    def after_epoch(
        self,
        epoch: int,
        model: RatingModel,
        optimizer: OptimizerState,
        trained: Mapping[SideName, Tensor],
        processes: Processes = Processes(),
    ) -> list[PruneEvent]:
        """Prune and compact model and optimizer state.

        Args:
            epoch: the epoch that just ended.
            trained: for each side a [n] bool tensor of the entities that have a training rating; where several
                processes train, of those that this one has.
            processes: who trains; usage is that over the entities of all, and the decision is the same in all.

        Returns:
            What was removed, in order of side, view and usage.
        """
        if epoch < self.start:
            return []
        events: list[PruneEvent] = []
        for name, side in model.prunable_sides().items():
            removed: list[list[int]] = []
            by_cluster = _usage_of_all(side, trained[name], model.training_backend, processes)
            for view, of_view in enumerate(by_cluster.split(side.n_clusters)):
                usage = of_view.tolist()
                weak = sorted((k for k, share in enumerate(usage) if share < self.threshold), key=usage.__getitem__)
                weak = weak[: max(0, len(usage) - self.min_clusters)]
                events += [PruneEvent(epoch, name, view, side.cluster_ids[view][k], usage[k]) for k in weak]
                removed.append(weak)
            if any(removed):
                remove_clusters(side, removed, optimizer)
        return events


def _usage_of_all(side: Side, trained: Tensor, backend: str, processes: Processes) -> Tensor:
    """[S] float64 mean weights over the trained entities of all processes."""
    n = int(trained.sum())
    if processes.size == 1 or n:
        own = functional.cluster_usage(side.tensors(), trained, backend=backend)
    else:
        own = torch.zeros(side.centers.shape[0], dtype=torch.float64)
    if processes.size == 1:
        return own
    sums = processes.sum(np.append(own.double().cpu().numpy() * n, n))
    return torch.from_numpy(sums[:-1] / sums[-1])


# a view that loses everything it may this many epochs after pruning began had clusters in name only
COLLAPSE_EPOCHS = 2


def warn_of_collapse(events: Sequence[PruneEvent], config: Any) -> None:
    """Warn where views lost every cluster that may go in the first `COLLAPSE_EPOCHS` epochs of pruning.

    Args:
        events: of these epochs.
        config: the `MFDMCConfig` of the model.
    """
    lost = Counter((event.side, event.view) for event in events)
    views = [f"{side} view {view}" for (side, view), n in lost.items() if n == config.n_clusters - config.min_clusters]
    if views:
        warnings.warn(
            f"{', '.join(views)}: only {config.min_clusters} of {config.n_clusters} clusters are left"
            f" {COLLAPSE_EPOCHS} epochs after pruning began. Centers that lie together make clusters alike: a larger"
            f" spread_margin (now {config.spread_margin:g}) or weight_spread ({config.weight_spread}) keeps them apart,"
            f" a smaller weight_entropy ({config.weight_entropy}) or prune_threshold ({config.prune_threshold:g})"
            " keeps more of them",
            ClustersCollapsed,
            stacklevel=5,  # where an estimator's fit is called
        )


def remove_clusters(side: Side, removed: Sequence[Sequence[int]], optimizer: OptimizerState | None = None) -> None:
    """Remove clusters of a side for good: compacts logits, centers and their optimizer state in their own storage.

    Args:
        side: changed in place; the parameters stay the same objects with the same `data_ptr()`.
        removed: for each view, positions among its active clusters; at least one cluster must stay in each view.
        optimizer: its state for the two parameters is compacted along.
    """
    keep: list[int] = []
    cluster_ids = []
    first = 0
    for ids, gone in zip(side.cluster_ids, removed, strict=True):
        if not set(gone) <= set(range(len(ids))):
            raise ValueError(f"positions to remove {list(gone)} must be below {len(ids)}, the clusters of the view")
        kept = [k for k in range(len(ids)) if k not in set(gone)]
        if not kept:
            raise ValueError("a view must keep at least one cluster")
        keep += [first + k for k in kept]
        cluster_ids.append(tuple(ids[k] for k in kept))
        first += len(ids)
    columns = torch.tensor(keep, device=side.centers.device)
    for parameter, dim in ((side.assignment_logits, 1), (side.centers, 0)):
        shape = parameter.shape
        # a state has the parameter's shape, one number a row, or is Adam's scalar step counter; a row of centers is a
        # cluster's and goes with it, one of logits is an entity's and stays
        compacted = (shape, shape[:1]) if parameter is side.centers else (shape,)
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape in compacted:
                state[key] = compact_(value, columns, dim)
        parameter.data = compact_(parameter.data, columns, dim)
        parameter.grad = None  # has the old shape
    side.cluster_ids = tuple(cluster_ids)


@torch.no_grad()
def compact_(table: Tensor, keep: Tensor, dim: int) -> Tensor:
    """Move the kept columns (dim 1) or rows (dim 0) of a table to the front of its own storage.

    Args:
        table: [rows, columns], or with dim 0 also [rows], contiguous; its content is overwritten.
        keep: [k] int64, ascending.

    Returns:
        A contiguous view of the kept part, on the same storage and `data_ptr()`.
    """
    if not table.is_contiguous():
        raise ValueError("only a contiguous table can be compacted in place")
    if dim == 0:
        # rows only move towards the front: ascending `keep` never reads a row that was already overwritten
        for target, source in enumerate(keep.tolist()):
            if target != source:
                table[target].copy_(table[source])
        return table[: len(keep)]
    return functional.compact_columns(table, keep)
