"""A section's run: items within a time, a row for each, and how time is taken on a device."""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# written between two runs that are not to find anything in the cache; far more than any GPU's L2
_FLUSH_BYTES = 512 << 20


class Skip(Exception):
    """An item that cannot be run here; the message says why."""


@dataclass
class Section:
    """One section of the benchmark.

    Attributes:
        name: of its rows.
        log: JSON lines, a row is added as soon as it is known, so that a cut loses none.
        device: where the tensors go: a GPU, or the CPU where kernels are interpreted.
        tiny: shapes as small as they can be; times then mean nothing and no target is judged.
        deadline: on the clock of `time.monotonic`, when no further item is begun.
    """

    name: str
    log: Path
    device: torch.device
    tiny: bool
    deadline: float

    def item(self, name: str, run: Callable[[], dict[str, Any]], needs_seconds: float = 5.0) -> dict[str, Any]:
        """Run one item and write its row: what it returned, its status and seconds. An error ends the item alone."""
        left = self.deadline - time.monotonic()
        row: dict[str, Any] = {"section": self.name, "name": name}
        start = time.perf_counter()
        if not self.tiny and left < needs_seconds:
            row |= {"status": "not run", "reason": f"{left:.0f} s were left, it needs about {needs_seconds:.0f}"}
        else:
            try:
                row |= {"status": "ok"} | run()
            except Skip as reason:
                row |= {"status": "skipped", "reason": str(reason)}
            except Exception as error:  # one item must not cost the others
                row |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:500]}"}
                row["traceback"] = traceback.format_exc()[-2000:]
        row["seconds"] = round(time.perf_counter() - start, 3)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(line_of(row), file=sys.stderr, flush=True)
        return row

    def judged(self, value: float, unit: str, target: float, aim: float | None = None, *, most: bool) -> dict[str, Any]:
        """A figure with its target: the most or the least that it may be. In tiny runs no verdict."""
        within = value <= target if most else value >= target
        return {
            "value": value,
            "unit": unit,
            "target": f"{'≤' if most else '≥'} {target:g}" + ("" if aim is None else f", aim {aim:g}"),
            "met": None if self.tiny else within,
        }

    def passed(self, good: bool, **details: Any) -> dict[str, Any]:
        """The row of a check."""
        return {"status": "ok" if good else "failed", **details}


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    value = f"{row['value']:.4g} {row['unit']}" if "value" in row else str(row.get("reason", ""))
    met = {True: "met", False: "MISSED"}.get(row.get("met"), "")  # type: ignore[arg-type]
    parts = [row["section"][:11], row["name"][:62], row["status"], value[:60], row.get("target", ""), met]
    return f"{parts[0]:11} {parts[1]:62} {parts[2]:8} {parts[3]:22} {parts[4]:18} {parts[5]}".rstrip()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(
    run: Callable[[], Any], device: torch.device, *, cold: bool = False, repeats: int = 20, recorded: bool = True
) -> float:
    """Median time of a call.

    Args:
        run: launches work, and never waits for the device where `recorded`.
        cold: write 512 MB before each repeat, so that caches hold nothing of it; counted in no time.
        recorded: replay a CUDA graph, so that time between launches is not the host's.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    run()  # compiles
    repeat: Callable[[], Any] = run
    if recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        repeat = graph.replay
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if cold else None
    times = []
    for _ in range(repeats + 2):
        if flush is not None:
            flush.zero_()
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        repeat()
        end_event.record()
        end_event.synchronize()
        times.append(start_event.elapsed_time(end_event) / 1000)
    return statistics.median(times[2:])


def copy_bandwidth(device: torch.device, tiny: bool) -> float:
    """Bytes read and written per second by a copy of 2 GB on the device: the ceiling of all that moves memory."""
    source = torch.ones((1 << 16) if tiny else (1 << 31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device)
