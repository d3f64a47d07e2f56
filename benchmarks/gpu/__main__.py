"""Right, race-free and fast on a GPU? Everything in one command, within a time.

    python -m benchmarks.gpu --out DIR [--minutes 9] [--section parity ...]
    python -m benchmarks.gpu --out DIR --interpret --tiny

Sections, each in a process of its own, so that a kernel that fails takes no other section along:

- environment: versions, device, tools, backends, bandwidth of a copy
- parity: each backend against the oracle in float64 (float32, bfloat16, float16; 10 seeds), the same bits in every run,
  whole epochs against torch's
- sanitizer: small cases under compute-sanitizer's memcheck and racecheck, where it is installed
- kernels: bandwidth of each pass, cold and warm, beside a copy's; tables of up to 320 MB
- training: epochs of the shapes of Netflix, MovieLens-20M and -1M, MovieLens-100k's launches, convergence; beside
  torch eager and compiled and a plain matrix factorization
- backends: the ops of every backend of the device side by side

Targets beside the figures are for an H200. Each row goes to DIR/gpu.jsonl and to standard error as soon as it is
known; the table is printed at the end. `--interpret --tiny` runs the same code on CPU tensors, as a test of itself: its
times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# share of the time; what a section leaves goes to those that follow
SECTIONS = {
    "environment": 0.05,
    "parity": 0.2,
    "sanitizer": 0.2,
    "kernels": 0.15,
    "training": 0.45,
    "backends": 0.05,
}


def run_section(name: str, log: Path, seconds: float, interpret: bool, tiny: bool) -> None:
    """One section, in this process."""
    import torch

    from benchmarks.gpu import checks, kernels, training
    from benchmarks.gpu.session import Section

    functions = {
        "environment": checks.environment,
        "parity": checks.parity,
        "sanitizer": checks.sanitizer,
        "kernels": kernels.kernels,
        "training": training.training,
        "backends": kernels.backends,
    }
    device = torch.device("cpu" if interpret else "cuda")
    functions[name](Section(name, log, device, tiny, time.monotonic() + seconds))


def main() -> None:
    """Run the sections one after the other, then print the table; exit status 1 where a row failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl; a file from before is replaced")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--section", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--interpret", action="store_true", help="in Triton's interpreter, on CPU tensors")
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes; no target is judged")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # of a section in a process of its own
    args = parser.parse_args()
    log: Path = args.out / "gpu.jsonl"
    if args.seconds is not None:
        run_section(args.section[0], log, args.seconds, args.interpret, args.tiny)
        return
    if args.interpret != args.tiny:
        parser.error("--interpret and --tiny go together: the interpreter is for the smallest shapes alone")
    if not args.interpret:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device; --interpret --tiny runs the same code on CPU tensors")
    args.out.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    os.environ |= {"TRITON_INTERPRET": "1"} if args.interpret else {}
    end = time.monotonic() + 60 * args.minutes
    for name in args.section:
        _in_own_process(name, args, log, end)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    _print_table(rows)
    sys.exit(any(row["status"] == "failed" for row in rows))


def _in_own_process(name: str, args: argparse.Namespace, log: Path, end: float) -> None:
    left = end - time.monotonic()
    later = args.section[args.section.index(name) :]
    seconds = left * SECTIONS[name] / sum(SECTIONS[n] for n in later)
    options = ["--interpret", "--tiny"] if args.interpret else []
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(args.out), *options, "--section", name]
    reason = ""
    try:
        # beyond its time a section ends its last item; one that hangs is ended
        limit = min(seconds + 60, max(left, 1.0)) if not args.tiny else 600
        ran = subprocess.run([*command, "--seconds", str(seconds)], timeout=limit)
        if ran.returncode:
            reason = f"its process ended with status {ran.returncode}"
    except subprocess.TimeoutExpired:
        reason = "its process was ended when its time was over"
    if reason:
        row = {"section": name, "name": "the whole section", "status": "failed", "reason": reason}
        with log.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")


def _print_table(rows: list[dict[str, object]]) -> None:
    from benchmarks.gpu.session import line_of

    print("\n" + "\n".join(line_of(row) for row in rows))
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "skipped", "not run")}
    missed = sum(row.get("met") is False for row in rows)
    print(", ".join(f"{n} {status}" for status, n in counts.items()) + f"; {missed} targets missed")


if __name__ == "__main__":
    main()
