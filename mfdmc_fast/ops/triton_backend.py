"""Lazy access to the Triton kernels: nothing here imports Triton before an op runs on it.

What a kernel may take is checked by `functional` and `dispatch`, so that no index reaches one unchecked.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from mfdmc_fast import environment
from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.ops.types import LossTerms

# of tables; arithmetic is float64 for float64, else float32
DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
# clusters of a side or numbers of an embedding
MAX_COLUMNS = 1024
# numbers in the centers of a view, clusters and view_dim each rounded up to a power of 2: one program holds them
MAX_VIEW = 8192


@functools.cache
def _load() -> str | None:
    """None where Triton can be imported, else the sentence that says why not; tried once per process."""
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError:
        return "Triton is not installed; install it, on Linux, with: pip install 'mfdmc_fast[triton]'"
    except ImportError as error:
        return f"Triton does not load ({error}); reinstall it with: pip install --force-reinstall 'mfdmc_fast[triton]'"
    return None


def why_unavailable() -> str | None:
    """A sentence on why Triton cannot be used and what to do about it, or None if it can."""
    reason = _load()
    if reason is None and not environment.triton_interprets() and not torch.cuda.is_available():
        return (
            "torch finds no CUDA device; it needs a GPU and a CUDA build of torch, or, to run it slowly on CPU tensors,"
            " the environment variable TRITON_INTERPRET=1"
        )
    return reason


def _kernels(name: str) -> ModuleType:
    reason = why_unavailable()
    if reason is not None:
        raise BackendUnavailable(reason)
    return importlib.import_module(f"mfdmc_fast.ops.triton_kernels.{name}")


def batch_loss_and_gradients(*arguments: Any, **named: Any) -> tuple[LossTerms, list[dict[str, Tensor]]]:
    """Loss terms of B >= 1 ratings and the gradients of `total`; see `triton_kernels.batch_loss`."""
    return cast(
        tuple[LossTerms, list[dict[str, Tensor]]],
        _kernels("batch_loss").batch_loss_and_gradients(*arguments, **named),
    )


def score_pairs(*arguments: Any, **named: Any) -> Tensor:
    """Predictions [B]; see `mfdmc_fast.ops.functional.score_pairs` for the contract."""
    return cast(Tensor, _kernels("score_pairs").score_pairs(*arguments, **named))


def top_items(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """The n best items of each user; see `mfdmc_fast.ops.functional.top_items` for the contract."""
    return cast(tuple[Tensor, Tensor], _kernels("top_items").top_items(*arguments, **named))


def cluster_usage(*arguments: Any, **named: Any) -> Tensor:
    """Mean assignment weights; see `mfdmc_fast.ops.functional.cluster_usage` for the contract."""
    return cast(Tensor, _kernels("cluster_usage").cluster_usage(*arguments, **named))
