"""Registers, spills and stack of every CUDA kernel, as ptxas reports them; nothing is run.

    python -m benchmarks.cuda_resources

writes `results/cuda_resources.json` and `.md`. Needs nvcc, no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, provenance, write_json
from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.files import replacing

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# ptxas names a kernel by the instance of `run_kernel`, whose last part is the struct
_KERNEL = re.compile(r"Compiling entry function '\w*?([A-Za-z]+)EEEvT_' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def kernel_resources(source: Path, architecture: str) -> list[dict[str, Any]]:
    """What ptxas reports of the kernels in one source: registers of a thread, and bytes of stack and spills.

    Raises:
        BackendUnavailable: there is no nvcc, or it fails; then with its message.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BackendUnavailable("nvcc is not on PATH; install a CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O3", "-std=c++17", "-Xptxas", "-v", f"-arch={architecture}", f"-I{CSRC}", f"-I{CSRC / 'include'}"]
        run = subprocess.run(
            [nvcc, *flags, "-c", str(source), "-o", str(Path(folder) / "kernel.o")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if run.returncode:
        raise BackendUnavailable(f"nvcc cannot compile {source.name}:\n{run.stdout}")
    return parse_report(run.stdout, source.name)


def parse_report(report: str, source: str) -> list[dict[str, Any]]:
    """The kernels in the output of `nvcc -Xptxas -v`."""
    found = []
    for part in report.split("ptxas info")[1:]:
        if kernel := _KERNEL.search(part):
            found.append({"source": source, "kernel": kernel[1], "architecture": kernel[2]})
        elif found and (spills := _SPILLS.search(part)):
            found[-1] |= dict(zip(("stack", "spill_stores", "spill_loads"), map(int, spills.groups()), strict=True))
        if found and (registers := _REGISTERS.search(part)):
            found[-1]["registers"] = int(registers[1])
    return found


def table(kernels: list[dict[str, Any]]) -> str:
    """The kernels as a table in Markdown: a row for each, registers for each architecture."""
    lines = [
        "| source | kernel | " + " | ".join(f"registers, {a}" for a in ARCHITECTURES) + " | spilled bytes |",
        "|" + "---|" * (3 + len(ARCHITECTURES)),
    ]
    for source, name in dict.fromkeys((k["source"], k["kernel"]) for k in kernels):
        of = {k["architecture"]: k for k in kernels if (k["source"], k["kernel"]) == (source, name)}
        registers = " | ".join(str(of[a]["registers"]) for a in ARCHITECTURES)
        spilled = max(k["spill_stores"] + k["spill_loads"] for k in of.values())
        lines.append(f"| {source} | {name} | {registers} | {spilled} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile everything for every architecture and store what ptxas says."""
    kernels = [
        k for source in SOURCES for architecture in ARCHITECTURES for k in kernel_resources(source, architecture)
    ]
    command = "python -m benchmarks.cuda_resources"
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    where = provenance(command)
    write_json(RESULTS / "cuda_resources.json", where | {"nvcc": nvcc, "kernels": kernels})
    title = (
        f"# CUDA kernels: what ptxas says\n\n`{command}`, commit {where['commit']}, nvcc {nvcc}. Nothing was run.\n\n"
    )
    with replacing(RESULTS / "cuda_resources.md") as temporary:
        temporary.write_text(title + table(kernels), encoding="utf-8")
    print(table(kernels), end="")


if __name__ == "__main__":
    main()
