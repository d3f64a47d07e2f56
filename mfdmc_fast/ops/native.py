"""Lazy access to the compiled modules, and the one place where tensors become arrays for them.

The compiled code knows arrays only; it checks shapes and index ranges. Here device, dtype and layout are checked, which
an array no longer shows, or which would otherwise end in a copy.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.ops.types import Combine, SideTensors


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or the sentence that says why there is none; tried once per process."""
    try:
        return importlib.import_module("mfdmc_fast._cpu")
    except ModuleNotFoundError:
        if any(Path(__file__).parents[1].glob("_cpu.*")):
            return "the C++ module was built for another Python version; reinstall the package with this one"
        return (
            "the C++ module was not built (no C++ compiler at install time, or MFDMC_NATIVE=off); "
            "reinstall with MFDMC_NATIVE=on to see the compiler's message"
        )
    except ImportError as error:
        return f"the C++ module does not load ({error}); reinstall the package on this machine"


def _module() -> ModuleType:
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailable(loaded)
    return loaded


def why_unavailable() -> str | None:
    """A sentence on why the C++ module cannot be used and what to do about it, or None if it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def build_info() -> dict[str, str | bool]:
    """Compiler, OpenMP (bool) and instruction set of the C++ module; raises BackendUnavailable without it."""
    return dict(_module().build_info())


def score_pairs(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,  # [B]
    item_idx: Tensor,  # [B]
    *,
    combine: Combine,
) -> Tensor:  # [B]
    """Predictions global_mean + b_u + b_i + z_u · z_i of B pairs on the CPU, with `torch.get_num_threads()` threads.

    Args:
        user, item: the sides, float32 or float64, one dtype for all, contiguous. `assignment_logits` [n, S],
            `centers` [S, d], `bias` [n] or None.
        global_mean: added to every prediction.
        user_idx, item_idx: [B] int64, contiguous; B may be 0.
        combine: "concat" or "sum".

    Returns:
        [B] in the dtype of the sides. No input gets a gradient. Deterministic: bit-identical for any number of threads.

    Raises:
        IndexError: an index lies outside its side.
        TypeError, ValueError: an argument has a wrong dtype, or a wrong device, layout, shape or value.
        BackendUnavailable: there is no C++ module.
    """
    module = _module()
    dtype = user.assignment_logits.dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"user.assignment_logits must be torch.float32 or torch.float64, not {dtype}")
    predictions = torch.empty(user_idx.numel(), dtype=dtype, device="cpu")  # [B]
    module.score_pairs(
        *_side_arrays("user", user, dtype),
        *_side_arrays("item", item, dtype),
        global_mean,
        _array("user_idx", user_idx, torch.int64),
        _array("item_idx", item_idx, torch.int64),
        combine,
        torch.get_num_threads(),
        predictions.numpy(),
    )
    return predictions


def _side_arrays(name: str, side: SideTensors, dtype: torch.dtype) -> tuple[Any, Any, tuple[int, ...], Any]:
    return (
        _array(f"{name}.assignment_logits", side.assignment_logits, dtype),
        _array(f"{name}.centers", side.centers, dtype),
        side.n_clusters,
        None if side.bias is None else _array(f"{name}.bias", side.bias, dtype),
    )


def _array(name: str, tensor: Tensor, dtype: torch.dtype) -> Any:
    """The memory of a tensor of any shape as a numpy array, without a copy."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")
    return tensor.detach().numpy()
