"""Model files: safetensors with a JSON header and a format version. Never pickle.

| part | content |
|---|---|
| metadata key `mfdmc_fast` | a JSON object: format_version, kind, package_version, config, |
| | train_mean, rating_scale, cluster_ids and history |
| `model.*` | parameters, as in the module's `state_dict` |
| `users.*`, `items.*` | raw ids in row order: `ids` int64 [n], or strings as `utf8` uint8 and `offsets` int64 [n + 1] |
| `seen.offsets`, `seen.items` | int64 [n_users + 1] and int32 [ratings]: the items each user rated in training |
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.config import BayesianMFConfig, FunkMFConfig, MFDMCConfig, ModelConfig, config_from_dict
from mfdmc_fast.content_checks import check_parameters, checked_cluster_ids
from mfdmc_fast.data.vocabulary import Vocabulary, ids_from_arrays, ids_to_arrays
from mfdmc_fast.errors import BackendUnavailable, MFDMCError, ModelFileError
from mfdmc_fast.history import TrainingHistory
from mfdmc_fast.model import SIDES, BayesianMFModel, FunkMFModel, MFDMCModel, Predictor
from mfdmc_fast.ops import dispatch
from mfdmc_fast.tensor_files import read_tensors, write_tensors

FORMAT_VERSION = 1
_KEY = "mfdmc_fast"
_KINDS: dict[str, tuple[type[ModelConfig], type[Any]]] = {
    "MFDMC": (MFDMCConfig, MFDMCModel),
    "FunkMF": (FunkMFConfig, FunkMFModel),
    "BayesianMF": (BayesianMFConfig, BayesianMFModel),
}


@dataclass(frozen=True)
class SeenItems:
    """The items each user rated in training: user row u has items[offsets[u] : offsets[u + 1]].

    Attributes:
        offsets: [n_users + 1] int64.
        items: [ratings] int32 rows of items.
    """

    offsets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]


@dataclass(frozen=True)
class FittedState:
    """All that a fitted estimator knows; what a model file holds.

    Attributes:
        kind: `MFDMC`, `FunkMF` or `BayesianMF`.
        model: trained parameters.
        users, items: raw id ↔ row.
        rating_scale: lowest and highest rating; predictions are clipped to it.
        seen: what each user rated.
        history: how it was trained.
    """

    kind: str
    model: Predictor
    users: Vocabulary
    items: Vocabulary
    rating_scale: tuple[float, float]
    seen: SeenItems
    history: TrainingHistory


def save_state(state: FittedState, path: str | os.PathLike[str], package_version: str) -> None:
    """Write a model file under a temporary name and rename it; an existing file is replaced only on success."""
    header = {
        "format_version": FORMAT_VERSION,
        "kind": state.kind,
        "package_version": package_version,
        "config": state.model.config.to_dict(),
        "train_mean": state.model.train_mean,
        "rating_scale": list(state.rating_scale),
        "cluster_ids": {side: s.cluster_ids for side, s in state.model.prunable_sides().items()},
        "history": state.history.to_dict(),
    }
    # clone: pruned parameters are views of a longer storage, of which only the live part belongs in the file
    tensors = {f"model.{name}": p.detach().cpu().clone() for name, p in state.model.named_parameters()}
    for side, vocabulary in zip(SIDES, (state.users, state.items), strict=True):
        tensors |= {f"{side}s.{name}": torch.from_numpy(a) for name, a in ids_to_arrays(vocabulary).items()}
    tensors["seen.offsets"] = torch.from_numpy(state.seen.offsets)
    tensors["seen.items"] = torch.from_numpy(state.seen.items)
    write_tensors(path, tensors, {_KEY: json.dumps(header, allow_nan=False)})


def load_state(path: str | os.PathLike[str], device: str | None = None) -> FittedState:
    """Read and check a model file, with its parameters on `device`; None: the device it was trained on.

    On another kind of device than that, the backend is `auto`.

    Raises:
        ModelFileError: missing, truncated, a pickle, of a newer format, or inconsistent; the message says which.
    """
    source = str(path)
    metadata, tensors = read_tensors(path)
    try:
        header = json.loads(metadata[_KEY])
        version = header["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError):  # the last: JSON that is nested too deep
        raise ModelFileError(f"{source}: a safetensors file, but not a model of mfdmc_fast") from None
    if type(version) is not int or version < 1:
        raise ModelFileError(f"{source}: damaged or inconsistent model file (format_version {version!r})")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{source}: has format version {version}, this package reads up to {FORMAT_VERSION};"
            f" it was written by mfdmc_fast {header.get('package_version')}: upgrade with pip install -U mfdmc_fast"
        )
    try:
        return _state_from_parts(header, tensors, device)
    except BackendUnavailable as error:
        raise ModelFileError(f"{source}: {error}: load it with device='cpu'") from error
    except (
        *(LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, MFDMCError),
        *(AssertionError, ImportError),  # torch's answers to a device that it was not built for
    ) as error:
        raise ModelFileError(f"{source}: damaged or inconsistent model file ({_describe(error)})") from error


def _state_from_parts(header: dict[str, Any], tensors: dict[str, Tensor], device: str | None) -> FittedState:
    kind = header["kind"]
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of model {kind!r}")
    config_class, model_class = _KINDS[kind]
    config = config_from_dict(config_class, header["config"] | _moved(header["config"], device))
    dispatch.check_device(config.device)
    if isinstance(config, MFDMCConfig):
        for side_name in SIDES:
            if len(header["cluster_ids"][side_name]) != config.n_views:  # before a huge number of views is built
                raise ValueError(f"cluster_ids of the {side_name} side do not fit n_views")
    users, items = (_ids_from_tensors(tensors, f"{side}s") for side in SIDES)
    train_mean = float(header["train_mean"])
    if not math.isfinite(train_mean):
        raise ValueError(f"train_mean {train_mean}")
    # built on the meta device: parameters are replaced at once, so drawing initial values would be wasted work
    with torch.device("meta"):
        model: Predictor = model_class(len(users), len(items), config, train_mean)
    cluster_ids = checked_cluster_ids(header["cluster_ids"], model)
    check_parameters(tensors, "model", model, cluster_ids, torch.float32)
    for side_name, side in model.prunable_sides().items():
        side.cluster_ids = cluster_ids[side_name]
    for name, parameter in dict(model.named_parameters()).items():
        owner, _, leaf = name.rpartition(".")
        on_device = tensors[f"model.{name}"].to(config.device)
        loaded = torch.nn.Parameter(on_device, requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(owner), leaf, loaded)
    low, high = (float(x) for x in header["rating_scale"])
    if not low <= high:
        raise ValueError(f"rating_scale {low} to {high}")
    model.rating_scale = (low, high)
    seen = SeenItems(tensors["seen.offsets"].numpy(), tensors["seen.items"].numpy())
    _check_seen(seen, len(users), len(items))
    return FittedState(kind, model, users, items, (low, high), seen, TrainingHistory.from_dict(header["history"]))


def _moved(config: dict[str, Any], device: str | None) -> dict[str, Any]:
    """The settings that change on another device: a backend that was named serves the old one."""
    if device is None:
        return {}
    moves = str(config.get("device", "cpu")).partition(":")[0] != device.partition(":")[0]
    return {"device": device} | ({"backend": "auto"} if moves else {})


def _ids_from_tensors(tensors: dict[str, Tensor], prefix: str) -> Vocabulary:
    return ids_from_arrays({name: t.numpy() for name, t in tensors.items() if name.startswith(f"{prefix}.")}, prefix)


def _check_seen(seen: SeenItems, n_users: int, n_items: int) -> None:
    fits = (
        seen.offsets.dtype == np.int64
        and seen.items.dtype == np.int32
        and seen.offsets.shape == (n_users + 1,)
        and seen.items.ndim == 1
        and seen.offsets[0] == 0
        and seen.offsets[-1] == len(seen.items)
        and not (seen.offsets[1:] < seen.offsets[:-1]).any()  # a difference could overflow
        and (not len(seen.items) or (seen.items.min() >= 0 and seen.items.max() < n_items))
    )
    if not fits:
        raise ValueError("seen.offsets and seen.items do not fit the ids")


def _describe(error: Exception) -> str:
    return f"missing {error}" if isinstance(error, KeyError) else str(error)
