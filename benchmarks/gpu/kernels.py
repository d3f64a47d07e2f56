"""Achieved bandwidth of the Triton kernels, and the ops of all device backends side by side.

Bytes are logical: what a kernel must read and write once, with every partner's embedding counted for every rating, also
where a cache holds it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.checks import device_backends
from benchmarks.gpu.session import Section, Skip, copy_bandwidth, median_seconds
from mfdmc_fast.ops import functional
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.types import SideTensors
from mfdmc_fast.testing import ALL_WEIGHTS


@dataclass(frozen=True)
class Shape:
    """A batch and its tables; V views of K clusters, centers of d numbers."""

    name: str
    n_users: int
    n_items: int
    batch_size: int
    n_views: int = 4
    n_clusters: int = 10
    view_dim: int = 8

    @property
    def columns(self) -> int:
        """Clusters of a side."""
        return self.n_views * self.n_clusters


SHAPES = (
    Shape("Netflix", 480_000, 17_800, 1 << 23),
    Shape("tables of 320 and 32 MB", 2_000_000, 200_000, 1 << 23),
    Shape("ML-20M", 138_000, 27_000, 1 << 21),
    Shape("ML-1M, default model", 6040, 3706, 1 << 17, 8, 10, 4),
)
TINY = (Shape("tiny", 60, 45, 500, 2, 3, 3),)


def random_rows(n: int, size: int, generator: torch.Generator) -> Tensor:
    """[size] int64 rows with a popularity that falls as a power of the rank, in random order."""
    device = generator.device
    weights = torch.arange(1, n + 1, device=device, dtype=torch.float64).pow(-0.6).cumsum(0)
    drawn = torch.searchsorted(weights, torch.rand(size, device=device, generator=generator).double() * weights[-1])
    return torch.randperm(n, device=device, generator=generator)[drawn.clamp(max=n - 1)]


def make_side(shape: Shape, n: int, generator: torch.Generator) -> SideParameters:
    """Random parameters of one side, float32."""

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=generator.device, generator=generator)

    clusters = (shape.n_clusters,) * shape.n_views
    return SideParameters(normal(n, shape.columns), normal(n), normal(shape.columns, shape.view_dim), clusters)


def kernels(section: Section) -> None:
    """Entity passes and rating pass of both sides, with cold and with warm caches, beside a copy's bandwidth."""
    reason = device_backends("batch_loss", section.device).get("triton", "there is no backend triton")
    copied: list[float] = []

    def copy() -> dict[str, Any]:
        copied.append(copy_bandwidth(section.device, section.tiny))
        return {"value": copied[0] / 1e9, "unit": "GB/s"}

    section.item("copy, read and written", copy)
    for shape in TINY if section.tiny else SHAPES:

        def passes(shape: Shape = shape) -> dict[str, Any]:
            if reason is not None:
                raise Skip(reason)
            return {"details": _measure_passes(section, shape, copied[0])}

        section.item(f"{shape.name}: all passes", passes, needs_seconds=15)


def _measure_passes(section: Section, shape: Shape, copied: float) -> list[str]:
    from mfdmc_fast.ops.triton_kernels.batch_loss import BatchSide, adam_steps, batch_pass, loss_constants
    from mfdmc_fast.ops.triton_kernels.entity_backward import Update, entity_backward
    from mfdmc_fast.ops.triton_kernels.entity_forward import entity_forward
    from mfdmc_fast.ops.triton_kernels.grouping import group
    from mfdmc_fast.ops.triton_kernels.rating_pass import rating_pass

    device = section.device
    generator = torch.Generator(device).manual_seed(0)
    sizes = {"user": shape.n_users, "item": shape.n_items}
    rows = {side: random_rows(n, shape.batch_size, generator) for side, n in sizes.items()}
    ratings = torch.rand(shape.batch_size, device=device, generator=generator) * 4 + 1
    sides = {side: make_side(shape, n, generator) for side, n in sizes.items()}
    groups = {
        "user": group(rows["user"], shape.n_users, rows["item"], ratings),
        "item": group(rows["item"], shape.n_items, rows["user"], ratings),
    }
    state = {
        side: {
            name: {"exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}
            for name, tensor in sides[side].tensors().items()
        }
        for side in sizes
    }
    rates = dict.fromkeys(("assignment_logits", "centers", "biases"), np.full(1, 1e-4))
    steps = adam_steps(rates, betas=(0.9, 0.999), epsilon=1e-8)
    update = Update(
        "adam",
        torch.tensor(steps[0], dtype=torch.float32, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
    loss = loss_constants(ALL_WEIGHTS, spread_margin=1.0, global_mean=3.5, dtype=torch.float32, device=device)
    dim = shape.n_views * shape.view_dim
    stride = -(-dim // 4) * 4
    embedded = {s: entity_forward(sides[s], "concat", groups=groups[s]) for s in sizes}
    notes = [f"{shape.n_users} x {shape.n_items}, batch {shape.batch_size}, {shape.columns} clusters, D = {dim}"]

    def report(
        name: str, run: Callable[[], Any], n_bytes: float, share: tuple[float, float] | None, recorded: bool = True
    ) -> None:
        for cold in (False,) if section.tiny else (True, False):

            def measured(cold: bool = cold) -> dict[str, Any]:
                seconds = median_seconds(run, device, cold=cold, recorded=recorded)
                row = {"ms": seconds * 1e3, "bytes": n_bytes, "gb_per_s": n_bytes / seconds / 1e9}
                if share is None:
                    return row | {"value": row["ms"], "unit": "ms"}
                of_copy = 100 * n_bytes / seconds / copied
                return row | section.judged(of_copy, "% of the copy", 100 * share[0], 100 * share[1], most=False)

            section.item(f"{shape.name}: {name}, {'cold' if cold else 'warm'}", measured, needs_seconds=2)

    for own, other in (("user", "item"), ("item", "user")):
        n, with_ratings = sizes[own], int((groups[own].offsets.diff() > 0).sum())
        n_chunks = int((groups[own].chunk_ranks < n).sum())
        gradients = rating_pass(embedded[own], embedded[other], groups[own], loss, squares=own == "user")
        report(
            f"entity forward, {own}s",
            functools.partial(entity_forward, sides[own], "concat", groups=groups[own]),
            with_ratings * (4 * shape.columns + 4 * stride + 8) + 4 * n,
            (0.6, 0.8),
        )
        report(
            f"rating pass, {own}s",
            functools.partial(rating_pass, embedded[own], embedded[other], groups[own], loss, squares=own == "user"),
            shape.batch_size * (8 + 4 * stride + 4) + with_ratings * (4 * stride + 12) + n_chunks * (4 * stride + 8),
            (0.5, 0.75),
        )
        report(
            f"entity backward and Adam, {own}s",
            functools.partial(
                entity_backward, sides[own], "concat", groups[own], embedded[own], gradients, loss,
                update=update, into=state[own],
            ),
            n * (6 * 4 * shape.columns + 6 * 4 + 8) + with_ratings * 4 * stride + n_chunks * (4 * stride + 4),
            (0.6, 0.8),
        )  # fmt: skip
        report(
            f"grouping by sorting, {own}s",
            functools.partial(group, rows[own], n, rows[other], ratings),
            0.0,
            None,
        )
    both = [BatchSide(sides[s], groups[s], None, state[s]) for s in ("user", "item")]
    report("a whole step", functools.partial(batch_pass, both[0], both[1], loss, "concat", update), 0.0, None)
    return notes


def backends(section: Section) -> None:
    """The same ops on the same tensors by every backend of the device, and by the reference."""
    for shape in TINY if section.tiny else SHAPES[2:]:
        generator = torch.Generator(section.device).manual_seed(0)
        user, item = (make_side(shape, n, generator) for n in (shape.n_users, shape.n_items))
        tensors = [
            SideTensors(s.table.requires_grad_(), s.centers.requires_grad_(), s.n_clusters, s.bias.requires_grad_())  # type: ignore[union-attr]
            for s in (user, item)
        ]
        users, items = (random_rows(n, shape.batch_size, generator) for n in (shape.n_users, shape.n_items))
        ratings = torch.rand(shape.batch_size, device=section.device, generator=generator) * 4 + 1
        z = torch.randn(min(shape.n_users, 1000), 32, device=section.device, generator=generator)
        item_z = torch.randn(shape.n_items, 32, device=section.device, generator=generator)
        calls: dict[str, Callable[[str], Any]] = {
            "batch_loss": functools.partial(_loss_and_gradients, tensors, users, items, ratings),
            "score_pairs": lambda b, t=tensors, u=users, i=items: functional.score_pairs(*t, 3.5, u, i, backend=b),  # type: ignore[misc]
            "top_items": lambda b, u=z, i=item_z: functional.top_items(u, i, None, 10, backend=b),  # type: ignore[misc]
        }
        for op, call in calls.items():
            for name, reason in {**device_backends(op, section.device), "reference": None}.items():

                def measured(
                    name: str = name, reason: str | None = reason, call: Callable[[str], Any] = call
                ) -> dict[str, Any]:
                    if reason is not None:
                        raise Skip(reason)
                    # not recorded: index checks wait for the device
                    run = functools.partial(call, name)
                    seconds = median_seconds(run, section.device, recorded=False, repeats=10)
                    return {"value": seconds * 1e3, "unit": "ms"}

                section.item(f"{shape.name}: {op}, {name}", measured)


def _loss_and_gradients(sides: list[SideTensors], users: Tensor, items: Tensor, ratings: Tensor, backend: str) -> None:
    terms = functional.batch_loss(*sides, 3.5, users, items, ratings, weights=ALL_WEIGHTS, backend=backend)
    torch.autograd.grad(terms.total, [t for s in sides for t in (s.assignment_logits, s.centers, s.bias)])  # type: ignore[misc]
