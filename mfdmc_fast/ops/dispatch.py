"""Which backend runs an op: what is available, which is chosen, and the sentence why not.

Choosing happens per call, by the device of the tensors. `auto` takes the first backend that can run the op and logs the
choice once at INFO; an explicit name never falls back, it raises `BackendUnavailable`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mfdmc_fast import environment
from mfdmc_fast.errors import BackendUnavailable, ConfigError
from mfdmc_fast.ops import autograd, cuda, native, reference, reference_gibbs, triton_backend

logger = logging.getLogger("mfdmc_fast")


@dataclass(frozen=True)
class Backend:
    """One family of kernels.

    Attributes:
        name: what users write.
        devices: torch device types it serves; None for all.
        ops: name of the op → launcher with the signature of the function of that name in `ops.reference`, or of
            the class in `ops.reference_gibbs`.
        dtypes: name of the op → dtypes it serves; every floating dtype where it is not named.
        max_columns: name of the op → the most clusters of a side, or numbers of an embedding, that it takes.
        max_view: name of the op → the most numbers in the centers of a view, clusters and view_dim each rounded up to
            a power of 2, that it takes.
        why_unavailable: None where the backend can run on this machine, else a sentence that says how to get it.
        interprets: whether it also serves CPU tensors, slowly, and so by explicit name only.
        hint: what to add where it is named for CPU tensors and does not interpret.
    """

    name: str
    devices: frozenset[str] | None
    ops: Mapping[str, Callable[..., Any]] = field(repr=False)
    why_unavailable: Callable[[], str | None] = field(repr=False)
    dtypes: Mapping[str, frozenset[torch.dtype]] = field(default_factory=dict, repr=False)
    max_columns: Mapping[str, int] = field(default_factory=dict, repr=False)
    max_view: Mapping[str, int] = field(default_factory=dict, repr=False)
    interprets: Callable[[], bool] = field(default=lambda: False, repr=False)
    hint: str = field(default="", repr=False)

    def why_not(
        self,
        op: str,
        device: torch.device,
        dtype: torch.dtype,
        columns: int = 0,
        view: int = 0,
        *,
        by_name: bool = False,
    ) -> str | None:
        """None where this backend can run `op` on such tensors, else the reason as a sentence."""
        if op not in self.ops:
            return f"it has no kernel for {op}"
        interpreted = by_name and device.type == "cpu" and self.interprets()
        if self.devices is not None and device.type not in self.devices and not interpreted:
            hint = self.hint if by_name and device.type == "cpu" else ""
            return f"it serves {', '.join(sorted(self.devices))} tensors, not {device.type}{hint}"
        if dtype not in self.dtypes.get(op, {dtype}):
            return f"it serves {', '.join(sorted(map(str, self.dtypes[op])))} for {op}, not {dtype}"
        if columns > self.max_columns.get(op, columns):
            return f"it takes at most {self.max_columns[op]} clusters or embedding numbers a side, not {columns}"
        if view > self.max_view.get(op, view):
            return (
                f"it takes at most {self.max_view[op]} numbers in the centers of a view, clusters and view_dim each"
                f" rounded up to a power of 2, not {view}"
            )
        return self.why_unavailable()


# in the order in which `auto` tries them
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="triton",
            devices=frozenset({"cuda"}),
            ops={
                "batch_loss": autograd.batch_loss_triton,
                "cluster_usage": triton_backend.cluster_usage,
                "score_pairs": triton_backend.score_pairs,
                "top_items": triton_backend.top_items,
            },
            why_unavailable=triton_backend.why_unavailable,
            dtypes=dict.fromkeys(("batch_loss", "cluster_usage", "score_pairs"), triton_backend.DTYPES)
            | {"top_items": frozenset({torch.float32})},
            max_columns=dict.fromkeys(("batch_loss", "score_pairs"), triton_backend.MAX_COLUMNS),
            max_view=dict.fromkeys(("batch_loss", "score_pairs"), triton_backend.MAX_VIEW),
            interprets=environment.triton_interprets,
            hint=" (CPU tensors only in Triton's interpreter, slowly: set the environment variable TRITON_INTERPRET=1)",
        ),
        Backend(
            name="cuda",
            devices=frozenset({"cuda"}),
            ops={
                "batch_loss": autograd.batch_loss_cuda,
                "cluster_usage": cuda.cluster_usage,
                "compact_columns": cuda.compact_columns,
                "score_pairs": cuda.score_pairs,
                "top_items": cuda.top_items,
            },
            why_unavailable=cuda.why_unavailable,
            dtypes=dict.fromkeys(
                ("batch_loss", "cluster_usage", "compact_columns", "score_pairs", "top_items"),
                frozenset({torch.float32}),
            ),
            max_columns=dict.fromkeys(
                ("batch_loss", "cluster_usage", "compact_columns", "score_pairs"), cuda.MAX_COLUMNS
            ),
        ),
        Backend(
            name="cpu",
            devices=frozenset({"cpu"}),
            ops={
                "batch_loss": autograd.batch_loss_cpu,
                "cluster_usage": native.cluster_usage,
                "fold_in": native.fold_in,
                "funkmf_loss": autograd.funkmf_loss_cpu,
                "gibbs_sampler": native.GibbsSampler,
                "posterior_scores": native.posterior_scores,
                "score_pairs": native.score_pairs,
                "top_items": native.top_items,
            },
            why_unavailable=native.why_unavailable,
            dtypes={
                "batch_loss": frozenset({torch.float32}),
                "cluster_usage": frozenset({torch.float32}),
                "fold_in": frozenset({torch.float32}),
                "funkmf_loss": frozenset({torch.float32}),
                "gibbs_sampler": frozenset({torch.float32}),
                "posterior_scores": frozenset({torch.float32}),
                "score_pairs": frozenset({torch.float32, torch.float64}),
                "top_items": frozenset({torch.float32}),
            },
            max_columns=dict.fromkeys(("batch_loss", "cluster_usage", "fold_in", "funkmf_loss"), native.MAX_COLUMNS),
        ),
        Backend(
            name="reference",
            devices=None,
            ops={
                "batch_loss": reference.batch_loss,
                "cluster_usage": reference.cluster_usage,
                "compact_columns": reference.compact_columns,
                "embed": reference.embed,
                "fold_in": reference.fold_in,
                "fold_in_factors": reference.fold_in_factors,
                "funkmf_loss": reference.funkmf_loss,
                "gibbs_sampler": reference_gibbs.GibbsSampler,
                "posterior_scores": reference.posterior_scores,
                "score_pairs": reference.score_pairs,
                "top_items": reference.top_items,
            },
            why_unavailable=lambda: None,
        ),
    )
}


def choose(
    op: str, device: torch.device, dtype: torch.dtype, backend: str = "auto", columns: int = 0, view: int = 0
) -> Backend:
    """The backend that runs `op` on tensors of this device and dtype.

    Args:
        backend: a backend's name, or `auto` (then `MFDMC_BACKEND`, then the first that can).
        columns: the larger of the clusters of a side and the numbers of an embedding, where the op has them.
        view: numbers in the centers of the largest view, see `Backend.max_view`, where the op has them.

    Raises:
        ConfigError: unknown name.
        BackendUnavailable: the named backend cannot run the op; the message lists those that can.
    """
    requested = environment.default_backend() if backend == "auto" else backend
    if requested != "auto" and requested not in BACKENDS:
        source = "MFDMC_BACKEND names the" if backend == "auto" else "there is an"
        raise ConfigError(f"{source} unknown backend {requested!r}; choose one of: auto, {', '.join(BACKENDS)}")
    refusals = {
        name: b.why_not(op, device, dtype, columns, view, by_name=name == requested) for name, b in BACKENDS.items()
    }
    able = [name for name, reason in refusals.items() if reason is None]
    if requested == "auto":
        _log_choice(op, able[0], tuple((n, r) for n, r in refusals.items() if r is not None))
        return BACKENDS[able[0]]
    if refusals[requested] is not None:
        raise BackendUnavailable(
            f"backend {requested!r} cannot run {op}: {refusals[requested]}. Available for it here: {', '.join(able)}"
        )
    return BACKENDS[requested]


def check_device(name: str) -> None:
    """Make sure that parameters can be put on a torch device, given by its name, and that ops run there.

    Raises:
        ConfigError: torch knows no such device, or it holds no numbers. BackendUnavailable: it is not on this machine.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind in ("", "meta"):
        raise ConfigError(f"device = {name!r}: must be a device of torch, such as cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device = {name!r}: torch finds no CUDA device; it needs an NVIDIA GPU and a CUDA build of torch."
            " Without them use the device cpu"
        )
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        raise BackendUnavailable(f"device = {name!r}: torch cannot use it here; use the device cpu") from error


@functools.cache
def _log_choice(op: str, chosen: str, refused: tuple[tuple[str, str], ...]) -> None:
    """Cached, so that each distinct choice is logged once per process."""
    reasons = "".join(f"; not {name}: {reason}" for name, reason in refused)
    logger.info("%s runs on backend %s%s", op, chosen, reasons)
