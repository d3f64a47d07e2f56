"""What a file holds must fit the model that it is for, before a kernel sees any of it: model files and checkpoints.

All raise `KeyError` for what is missing and `ValueError`, with a message that names it, for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfdmc_fast.checkpoints import Checkpoint
from mfdmc_fast.model import Predictor, RatingModel, SideName
from mfdmc_fast.optim import OptimizerState

ClusterIds = dict[SideName, tuple[tuple[int, ...], ...]]


def checked_cluster_ids(values: Any, model: Predictor) -> ClusterIds:
    """Original numbers of the clusters of every side, view by view, from plain values.

    Args:
        values: for each side, for each view, ascending integers from 0 to n_clusters - 1.
        model: with the settings that they must fit; its own clusters do not matter.
    """
    config: Any = model.config
    found: ClusterIds = {}
    for side in model.prunable_sides():
        views = values[side]
        if not isinstance(views, list) or len(views) != config.n_views:
            raise ValueError(f"cluster_ids of the {side} side do not fit n_views")
        for ids in views:
            whole = isinstance(ids, list) and bool(ids) and all(type(k) is int for k in ids)
            if not whole or sorted(set(ids)) != ids or ids[0] < 0 or ids[-1] >= config.n_clusters:
                raise ValueError(f"cluster_ids of the {side} side are not ascending numbers below n_clusters")
        found[side] = tuple(map(tuple, views))
    return found


def check_parameters(
    tensors: Mapping[str, Tensor],
    prefix: str,
    model: Predictor,
    cluster_ids: ClusterIds,
    dtype: torch.dtype,
    rows: Mapping[str, int] | None = None,
) -> None:
    """The parameters of a model with these clusters: all there, no others, of their shapes and dtype, finite.

    Args:
        tensors: by name; those that start with `prefix` and a dot are looked at.
        prefix: what their names have before those of the model's parameters.
        model: with the settings that they must fit.
        cluster_ids: of the parameters.
        dtype: of the parameters.
        rows: of parameters, by their names, where they are others than the model's.
    """
    parameters = dict(model.named_parameters())
    foreign = [name for name in tensors if name.startswith(f"{prefix}.") and name[len(prefix) + 1 :] not in parameters]
    if foreign:
        raise ValueError(f"{', '.join(foreign[:3])}: not a parameter of a model with these settings")
    for name, parameter in parameters.items():
        shape = _shape(name, parameter, cluster_ids, rows or {})
        _check_tensor(name, tensors[f"{prefix}.{name}"], shape, dtype)


def check_run(
    found: Checkpoint,
    history: Any,
    begun: Any,
    model: RatingModel,
    optimizer: OptimizerState,
    n_batches: int,
    rows: Mapping[str, int],
) -> None:
    """A checkpoint of a run of these settings and ratings: all that continuing takes is there and fits.

    Args:
        found: the checkpoint.
        history: the `TrainingHistory` in it.
        begun: that of the run before its first epoch.
        model, optimizer: likewise.
        n_batches: of an epoch.
        rows: of all processes together, by the names of parameters; the model may have those of one.
    """
    state, tensors, epochs = found.state, found.tensors, model.config.epochs
    done = len(history.epochs)
    if [record.epoch for record in history.epochs] != list(range(1, done + 1)) or not 1 <= done <= epochs:
        raise ValueError(f"its epochs are not 1, 2, … up to {epochs} at most")
    if done == epochs and not history.stop_reason:
        raise ValueError("all epochs are done, and there is no reason why it ended")
    if (history.backend, history.batch_size) != (begun.backend, begun.batch_size):
        raise ValueError("its backend or batch size is not that of the run")
    for name in ("best_epoch", "epochs_without_gain"):
        if type(state[name]) is not int or not 0 <= state[name] <= done:
            raise ValueError(f"{name} is not an integer from 0 to {done}")
    dtype = next(model.parameters()).dtype
    cluster_ids = checked_cluster_ids(state["cluster_ids"], model)
    check_parameters(tensors, "model", model, cluster_ids, dtype, rows)
    check_optimizer(tensors, model, optimizer, cluster_ids, done * n_batches, rows)
    known = ["model.", "optimizer."]
    if state["best_cluster_ids"] is not None:
        if model.config.keep != "best" or not state["best_epoch"]:
            raise ValueError("it holds a best epoch where none is kept")
        best_ids = checked_cluster_ids(state["best_cluster_ids"], model)
        check_parameters(tensors, "best", model, best_ids, dtype, rows)
        known.append("best.")
    elif model.config.keep == "best" and state["best_epoch"]:
        raise ValueError("it does not hold the best epoch")
    foreign = [name for name in tensors if not name.startswith(tuple(known))]
    if foreign:
        raise ValueError(f"{', '.join(foreign[:3])}: not of a checkpoint")


def check_optimizer(
    tensors: Mapping[str, Tensor],
    model: RatingModel,
    optimizer: OptimizerState,
    cluster_ids: ClusterIds,
    steps: int,
    rows: Mapping[str, int],
) -> None:
    """The state of an optimizer after some steps, named `optimizer.PARAMETER.KEY`: complete, of its shapes and dtypes,
    and finite, which the native engine relies on.

    Args:
        tensors: by name; those that start with `optimizer.` are looked at.
        model: before the first step.
        optimizer: before its first step; torch's have no state then.
        cluster_ids: of the state.
        steps: that it has made.
        rows: as in `check_run`.
    """
    of_torch = ("row_sum",) if model.config.optimizer == "adagrad" else ("step", "exp_avg", "exp_avg_sq")
    expected = set()
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter) or {}
        shape = _shape(name, parameter, cluster_ids, rows)
        shapes = {"step": (), "row_sum": shape[:1], "next_step": shape[:1]}
        for key in state or of_torch:
            full = f"optimizer.{name}.{key}"
            expected.add(full)
            dtype = state[key].dtype if state else torch.float32 if key == "step" else parameter.dtype
            tensor = tensors[full]
            _check_tensor(full, tensor, shapes.get(key, shape), dtype)
            if key in ("exp_avg_sq", "row_sum") and bool((tensor < 0).any()):
                raise ValueError(f"{full} holds negative sums of squares")
            if key in ("step", "next_step") and bool((tensor != steps).any()):
                raise ValueError(f"{full} is not {steps}, the steps that were made")
    foreign = [name for name in tensors if name.startswith("optimizer.") and name not in expected]
    if foreign:
        raise ValueError(f"{', '.join(foreign[:3])}: not a state of this optimizer")


def _shape(name: str, parameter: Tensor, cluster_ids: ClusterIds, rows: Mapping[str, int]) -> tuple[int, ...]:
    """That of a parameter by its name, with these clusters and, where they are named, rows."""
    side, _, leaf = name.partition(".")
    ids = cluster_ids.get("user" if side == "user" else "item")
    if ids is None or leaf == "bias":
        return rows.get(name, parameter.shape[0]), *parameter.shape[1:]
    total = sum(map(len, ids))
    return (rows.get(name, parameter.shape[0]), total) if leaf == "assignment_logits" else (total, parameter.shape[1])


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, dtype)]
        raise ValueError(f"{name} is {list(tensor.shape)} {kinds[0]}, expected {list(shape)} {kinds[1]}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values")
