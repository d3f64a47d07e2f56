"""What the Triton kernels take of a GPU, without one: `python -m benchmarks.triton_resources`.

Every launcher is called as in training and prediction, but its kernels are only compiled, ahead of time, for the given
architectures: the compiled code is that of a real launch. Registers and memory are what `cuobjdump` reads from it.

Writes results/triton_resources.json and .md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.results_file import RESULTS, provenance, write_json
from mfdmc_fast.files import replacing
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels.batch_loss import BatchSide, adam_steps, batch_pass, loss_constants
from mfdmc_fast.ops.triton_kernels.cluster_usage import cluster_usage
from mfdmc_fast.ops.triton_kernels.deal import MAX_BATCHES_OF_KERNEL, Columns, Dealer
from mfdmc_fast.ops.triton_kernels.entity_backward import Update
from mfdmc_fast.ops.triton_kernels.grouping import group
from mfdmc_fast.ops.triton_kernels.score_pairs import score_pairs
from mfdmc_fast.ops.triton_kernels.top_items import top_items
from mfdmc_fast.ops.types import LossWeights, SideTensors

ARCHITECTURES = (80, 90, 100)
# n_clusters, view_dim, combine, dtype
SHAPES: dict[str, tuple[tuple[int, ...], int, str, torch.dtype]] = {
    "concat-V8-K10-d4": ((10,) * 8, 4, "concat", torch.float32),
    "sum-V4-K10-d16": ((10,) * 4, 16, "sum", torch.float32),
    "concat-V8-K20-d8": ((20,) * 8, 8, "concat", torch.float32),
    "concat-V8-K10-d4-bf16": ((10,) * 8, 4, "concat", torch.bfloat16),
}
_ENTITIES, _RATINGS = 6000, 20_000


@dataclass(frozen=True)
class Resources:
    """One compiled kernel: per thread registers and spilled bytes, per program shared bytes."""

    kernel: str
    shape: str
    variant: str
    architecture: int
    warps: int
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    global_loads: dict[str, int]  # numbers that one instruction loads → such instructions in the PTX


class _CompileOnly:
    """A driver without a device. The architecture is its device number, so that each has its own cache of kernels."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return self._architecture

    def get_current_stream(self, _: Any = None) -> int:
        return 0

    def get_device_capability(self, _: Any = None) -> tuple[int, int]:
        return divmod(self._architecture, 10)


def _compiled(architecture: int, calls: dict[str, Any]) -> list[tuple[str, str, int, Any]]:
    """(kernel, call, warps, compiled code) of every distinct kernel that the calls would launch."""
    found: dict[str, tuple[str, str, int, Any]] = {}
    launch = JITFunction.run

    call = ""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = launch(self, *args, grid=grid, warmup=True, **options)
        found.setdefault(code.hash, (self.fn.__name__, call, options["num_warps"], code))

    driver.set_active(_CompileOnly(architecture))
    JITFunction.run = compile_only
    try:
        for name, run in calls.items():
            call = name
            run()
    finally:
        JITFunction.run = launch
    return list(found.values())


def _calls(n_clusters: tuple[int, ...], view_dim: int, combine: str, dtype: torch.dtype) -> dict[str, Any]:
    """Every launcher, as it is called for a shape."""
    columns = sum(n_clusters)
    side = SideParameters(
        torch.zeros(_ENTITIES, columns, dtype=dtype),
        torch.zeros(_ENTITIES, dtype=dtype),
        torch.zeros(columns, view_dim, dtype=dtype),
        n_clusters,
        torch.ones(_ENTITIES, dtype=dtype),
    )
    idx = torch.arange(_RATINGS) % _ENTITIES
    groups = group(idx, _ENTITIES, idx, torch.zeros(_RATINGS, dtype=dtype))
    loss = loss_constants(LossWeights(), spread_margin=1.0, global_mean=0.0, dtype=dtype, device=idx.device)
    rates = dict.fromkeys(("assignment_logits", "biases", "centers"), torch.ones(1).numpy())
    step = torch.tensor(adam_steps(rates, betas=(0.9, 0.999), epsilon=1e-8)[0], dtype=loss.dtype)

    def batch(optimizer: str | None, listed: bool) -> None:
        into: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in side.tensors().items():
            moments = torch.zeros(tensor.shape, dtype=loss.dtype)
            into[name] = {
                None: {"grad": torch.zeros_like(tensor)},
                "adam": {"exp_avg": moments, "exp_avg_sq": moments},
                "adagrad": {"row_sum": torch.zeros(len(tensor), dtype=loss.dtype)},
            }[optimizer]
        own = BatchSide(side, groups, torch.arange(_ENTITIES) if listed else None, into)
        update = None if optimizer is None else Update(optimizer, step, torch.zeros(1, dtype=torch.int64))
        batch_pass(own, own, loss, combine, update)  # type: ignore[arg-type]

    def deal(n_batches: int) -> None:
        ratings = Columns(idx.to(torch.int32), idx.to(torch.int32), torch.zeros(_RATINGS))
        Dealer(ratings, _ENTITIES, _ENTITIES, n_batches).deal(torch.zeros(1, dtype=torch.int64))

    tensors = SideTensors(side.table, side.centers, n_clusters, side.bias, side.l2_scale)  # type: ignore[arg-type]
    dim = view_dim * (len(n_clusters) if combine == "concat" else 1)
    z = torch.zeros(100, dim)
    return {
        "gradients, listed rows": lambda: batch(None, True),
        "gradients, whole tables": lambda: batch(None, False),
        "adam": lambda: batch("adam", False),
        "adagrad": lambda: batch("adagrad", True),
        "dealing 10 batches": lambda: deal(10),
        "dealing the most batches": lambda: deal(MAX_BATCHES_OF_KERNEL),
        "prediction": lambda: score_pairs(tensors, tensors, 0.0, idx, idx, combine=combine),  # type: ignore[arg-type]
        "pruning": lambda: cluster_usage(tensors, torch.ones(_ENTITIES, dtype=torch.bool)),
        "recommendation": lambda: top_items(
            z,
            z,
            z[:, 0],
            10,
            exclude_offsets=torch.arange(101),
            exclude_items=torch.zeros(100, dtype=torch.int64),
        ),
    }


def resources(architecture: int, shape: str, only: str | None = None) -> list[Resources]:
    """What every kernel takes for a named shape, or those of one call.

    Raises:
        RuntimeError: Triton interprets in this process; kernels compile in another only.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted in this process and cannot be compiled")
    calls = {name: run for name, run in _calls(*SHAPES[shape]).items() if only in (None, name)}
    return [
        _resources_of(kernel, shape, call, architecture, warps, code)
        for kernel, call, warps, code in _compiled(architecture, calls)
    ]


def _resources_of(kernel: str, shape: str, call: str, architecture: int, warps: int, code: Any) -> Resources:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(code.asm["cubin"])
        cubin.flush()
        command = [str(tool), "--dump-resource-usage", cubin.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    widths = re.findall(r"ld\.global(?:\.\w+|::\w+)*?(?:\.v(\d))?\.[bfsu]\d+", code.asm["ptx"])
    loads = Counter(width or "1" for width in widths)
    return Resources(
        kernel.strip("_").removesuffix("_kernel"),
        shape,
        call,
        architecture,
        warps,
        numbers["REG"],
        numbers["STACK"],
        numbers["LOCAL"],
        code.metadata.shared,
        dict(sorted(loads.items())),
    )


def _table(rows: list[Resources]) -> str:
    """Markdown: one line a kernel and shape, architectures side by side."""
    kernels: dict[tuple[str, ...], dict[int, Resources]] = {}
    for row in rows:
        kernels.setdefault((row.shape, row.kernel, row.variant, str(row.warps)), {})[row.architecture] = row
    architectures = sorted({row.architecture for row in rows})
    head = ["shape", "kernel", "first launched for", "warps"]
    head += [f"sm_{a}: registers, shared bytes, spilled bytes" for a in architectures]
    head += ["loads in the PTX by the numbers that each reads"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key, of_architecture in kernels.items():
        cells = [*key]
        for architecture in architectures:
            row = of_architecture.get(architecture)
            spilled = None if row is None else row.stack_bytes + row.local_bytes
            cells.append("" if row is None else f"{row.registers}, {row.shared_bytes}, {spilled}")
        cells.append(", ".join(f"{n} of {w}" for w, n in next(iter(of_architecture.values())).global_loads.items()))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", default=ARCHITECTURES, metavar="90")
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--only", metavar="adam", help="kernels of one call, as the table names them")
    parser.add_argument("--json", type=Path, default=RESULTS / "triton_resources.json")
    arguments = parser.parse_args()
    rows = [
        row for a in arguments.architecture for shape in arguments.shape for row in resources(a, shape, arguments.only)
    ]
    command = "python -m benchmarks.triton_resources " + " ".join(sys.argv[1:])
    values = provenance(command.strip()) | {"triton": triton.__version__, "kernels": [asdict(row) for row in rows]}
    write_json(arguments.json, values)
    with replacing(arguments.json.with_suffix(".md")) as temporary:
        temporary.write_text(
            "# What the Triton kernels take of a GPU\n\n"
            f"`{command.strip()}`, commit {values['commit']}, Triton {triton.__version__}: compiled ahead of time, run"
            f" nowhere. Registers are per thread, shared bytes per program.\n\n{_table(rows)}\n",
            encoding="utf-8",
        )
    print(_table(rows))


if __name__ == "__main__":
    main()
