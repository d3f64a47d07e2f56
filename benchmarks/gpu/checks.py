"""What is here, and whether it is right: environment, parity with the oracle, races, checkers of memory accesses."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import small_case
from benchmarks.gpu.session import Section, Skip, copy_bandwidth
from benchmarks.results_file import provenance
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import BatchIterator, RatingsDataset, make_planted_ratings
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.epochs import TorchEpochs
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import functional, reference
from mfdmc_fast.ops.dispatch import BACKENDS
from mfdmc_fast.ops.types import Combine
from mfdmc_fast.testing import ALL_WEIGHTS, Case, make_case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEEDS = 10
_REPEATS = 20  # of one input, for races
_SANITIZER_SECONDS = 100


def device_backends(op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """The backends with kernels for a device, and why one cannot be used: None where it can."""
    named = {name: BACKENDS[name] for name in ("triton", "cuda") if name in BACKENDS}
    return {name: backend.why_not(op, device, dtype, by_name=True) for name, backend in named.items()}


def environment(section: Section) -> None:
    """Versions, the device, tools and backends; the copy bandwidth that later figures are compared with."""

    def report() -> dict[str, Any]:
        found: dict[str, Any] = provenance("python -m benchmarks.gpu")
        if section.device.type == "cuda":
            properties = torch.cuda.get_device_properties(section.device)
            found |= {
                "gpu": properties.name,
                "multiprocessors": properties.multi_processor_count,
                "memory_gb": properties.total_memory / 1e9,
                "l2_mb": properties.L2_cache_size / 1e6,
                "cuda": torch.version.cuda,
            }
        found["tools"] = {name: shutil.which(name) for name in ("compute-sanitizer", "nvcc", "ncu", "gcc")}
        found["backends"] = device_backends("batch_loss", section.device)
        return {"details": found, "reason": found.get("gpu", "interpreted on CPU tensors")}

    section.item("versions and device", report)

    def copy() -> dict[str, Any]:
        return {"value": copy_bandwidth(section.device, section.tiny) / 1e9, "unit": "GB/s"}

    section.item("copy bandwidth, read and written", copy)


def parity(section: Section) -> None:
    """Every backend against the oracle in float64, the same bits each time, and whole epochs against torch's."""
    for name, reason in device_backends("batch_loss", section.device).items():
        for dtype in DTYPES[:1] if section.tiny else DTYPES:
            label = f"{name}, batch_loss, {str(dtype).removeprefix('torch.')}"
            reason = device_backends("batch_loss", section.device, dtype)[name]
            section.item(label, _or_skip(reason, functools.partial(_parity, section, name, dtype)))
        reason = device_backends("batch_loss", section.device)[name]
        section.item(
            f"{name}, the same bits in every run", _or_skip(reason, functools.partial(_same_bits, section, name))
        )
    for n_batches in (12,) if section.tiny else (12, 64, 100):
        section.item(f"dealing {n_batches} batches", functools.partial(_dealing, section, n_batches))
    for optimizer in ("adam",) if section.tiny else ("adam", "adagrad"):
        section.item(f"epochs follow torch's, {optimizer}", functools.partial(_epochs, section, optimizer))


def _or_skip(reason: str | None, run: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def skip() -> dict[str, Any]:
        raise Skip(str(reason))

    return run if reason is None else skip


def _cases(section: Section) -> list[tuple[Combine, dict[str, Any]]]:
    if section.tiny:
        return [("concat", {"batch_size": 63, "n_users": 20})]
    large = {"batch_size": 20_000, "n_users": 3000, "n_items": 900, "logit_scale": 3.0}
    return [
        ("concat", {"batch_size": 5000, "n_users": 300, "n_items": 170, "l2_scales": True}),
        ("concat", {**large, "user_clusters": (10,) * 8, "item_clusters": (10,) * 8, "view_dim": 4}),
        ("sum", {**large, "user_clusters": (10, 7, 3, 1), "item_clusters": (9, 10, 2, 5), "view_dim": 16}),
        ("concat", {"batch_size": 700, "logit_scale": 80.0, "biases": False}),
    ]


def _terms_and_gradients(case: Case, run: Callable[..., Any], combine: Combine, **named: Any) -> list[torch.Tensor]:
    terms = run(*case, combine=combine, weights=ALL_WEIGHTS, spread_margin=2.0, **named)
    terms.total.backward()
    return [torch.stack(terms).detach().double(), *(p.grad.double() for p in case.parameters())]


def _parity(section: Section, backend: str, dtype: torch.dtype) -> dict[str, Any]:
    """float32: relative RMS error at most 1e-5. 16 bits: at most twice the largest error of plain torch in them."""
    worst, bad = 0.0, []
    for seed in range(1 if section.tiny else SEEDS):
        for combine, sizes in _cases(section):
            given = make_case(**sizes, seed=seed).to(dtype, str(section.device))
            exact = given.to(torch.float64, str(section.device))
            mine = _terms_and_gradients(given, functional.batch_loss, combine, backend=backend)
            true = _terms_and_gradients(exact, reference.batch_loss, combine)
            plain = [torch.zeros_like(t) for t in true]
            if dtype != torch.float32:
                plain = _terms_and_gradients(given.to(dtype, str(section.device)), reference.batch_loss, combine)
            for place, (m, t, p) in enumerate(zip(mine, true, plain, strict=True)):
                if dtype == torch.float32:
                    error = float((m - t).square().mean().sqrt() / (1e-5 * t.square().mean().sqrt() + 1e-9))
                else:
                    error = float((m - t).abs().max() / (2 * (p - t).abs().max() + 1e-5))
                worst = max(worst, error)
                if not error <= 1:
                    bad.append({"seed": seed, "combine": combine, "sizes": str(sizes), "tensor": place, "error": error})
    return section.passed(not bad, value=worst, unit="of the bound", details=bad[:10])


def _same_bits(section: Section, backend: str) -> dict[str, Any]:
    first: list[torch.Tensor] | None = None
    different = 0
    for _ in range(2 if section.tiny else _REPEATS):
        sizes = {"batch_size": 200} if section.tiny else {"batch_size": 50_000, "n_users": 3000, "n_items": 100}
        case = make_case(**sizes).to(torch.float32, str(section.device))
        found = _terms_and_gradients(case, functional.batch_loss, "concat", backend=backend)
        first = first or found
        different += not all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
    return section.passed(different == 0, value=different, unit="runs differ")


def _epochs(section: Section, optimizer: str) -> dict[str, Any]:
    """Mean loss of each epoch within 1e-4 of torch's with the reference; the same bits from recorded epochs, launched
    ones, and ones whose batches are copied from the host.
    """
    from mfdmc_fast.device_epochs import DeviceEpochs

    sizes = (60, 45, 1300) if section.tiny else (2000, 900, 60_000)
    data = RatingsDataset.from_ratings(make_planted_ratings(*sizes, seed=5)).sorted()
    shape = {"n_views": 2, "n_clusters": 3} if section.tiny else {}
    config = MFDMCConfig(epochs=1 if section.tiny else 6, optimizer=optimizer, **shape)  # type: ignore[arg-type]
    losses: dict[str, list[float]] = {}
    parameters: dict[str, list[torch.Tensor]] = {}
    for kind in ("torch", "recorded", "launched", "streamed"):
        model = MFDMCModel(len(data.users), len(data.items), config, float(data.ratings.mean())).to(section.device)
        batches = BatchIterator(data, None, 0, str(section.device))
        epochs: Any = TorchEpochs(model, batches) if kind == "torch" else None
        if epochs is None:
            epochs = DeviceEpochs(model, batches, memory_bytes=0 if kind == "streamed" else None)
            epochs._may_record &= kind == "recorded"
        losses[kind] = [epochs.run(epoch, [])["total"] for epoch in range(1, config.epochs + 1)]
        parameters[kind] = [p.detach() for p in model.parameters()]
    worst = max(abs(a - b) / b for a, b in zip(losses["recorded"], losses["torch"], strict=True))
    same = {
        kind: all(torch.equal(a, b) for a, b in zip(parameters["recorded"], parameters[kind], strict=True))
        for kind in ("launched", "streamed")
    }
    return section.passed(
        worst <= 1e-4 and all(same.values()), value=worst, unit="relative", details={"same bits as recorded": same}
    )


def _dealing(section: Section, n_batches: int) -> dict[str, Any]:
    """The batches of an epoch in both orders are those that the host deals."""
    from mfdmc_fast.device_batches import ResidentBatches

    n_ratings = 1300 if section.tiny else 1_000_003
    generator = np.random.default_rng(0)
    users, items = (generator.integers(0, n, n_ratings) for n in (60, 45))
    ids = (Vocabulary.from_values(np.arange(n)) for n in (60, 45))
    data = RatingsDataset(users, items, generator.random(n_ratings, dtype=np.float32), *ids)
    batches = BatchIterator(data, -(-n_ratings // n_batches), seed=3)
    dealt = ResidentBatches(batches, 60, 45, section.device)
    dealt.prepare(2)
    different = 0
    for batch, (by_user, by_item) in zip(batches.epoch(2), dealt.groups(), strict=True):
        order = batch.item_idx.sort(stable=True).indices
        size = len(order)
        pairs = (
            (by_user.partners, batch.item_idx), (by_user.ratings, batch.ratings),
            (by_item.partners, batch.user_idx[order]), (by_item.ratings, batch.ratings[order]),
        )  # fmt: skip
        different += not all(torch.equal(a[:size].cpu().to(b.dtype), b) for a, b in pairs)
    return section.passed(different == 0, value=different, unit="batches differ")


def sanitizer(section: Section) -> None:
    """Small cases of each backend under compute-sanitizer: accesses out of bounds, and races in shared memory."""
    program = shutil.which("compute-sanitizer")
    for name, reason in device_backends("batch_loss", section.device).items():
        if section.tiny:
            section.item(f"{name}, small cases", _or_skip(reason, functools.partial(_small_case, name, section.device)))
            continue
        for tool in ("memcheck", "racecheck"):
            why = reason or (None if program else "compute-sanitizer is not on the PATH")
            run = functools.partial(_watched, section, str(program), tool, name)
            section.item(f"{name}, {tool}", _or_skip(why, run), needs_seconds=20)


def _small_case(backend: str, device: torch.device) -> dict[str, Any]:
    small_case.run(backend, device)
    return {"reason": "without a checker: that needs a GPU"}


def _watched(section: Section, program: str, tool: str, backend: str) -> dict[str, Any]:
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.small_case"]
    # each tensor with an allocation of its own, so that an access beyond it is seen
    surroundings = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        ran = subprocess.run(
            [*command, backend], env=surroundings, capture_output=True, text=True, timeout=_SANITIZER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Skip(f"not done after {_SANITIZER_SECONDS} s") from None
    found = [text for text in ran.stdout.splitlines() if "=====" in text]
    if any("Device not supported" in text for text in found):
        raise Skip("compute-sanitizer does not support this machine")
    details = found[:40] if ran.returncode else found[-2:]
    return section.passed(ran.returncode == 0, details=details, reason=(found or [ran.stderr[-300:]])[-1][:100])
