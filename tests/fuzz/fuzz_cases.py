"""Reads damaged files in a process of limited memory: `python fuzz_cases.py FOLDER CASES SEED [TARGET ...]`.

Prints one JSON line a target. The case at work is always in FOLDER, so that it is known where the process dies.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from fuzz_mutations import mutate
from fuzz_targets import MOST_MB, MOST_SECONDS, Target, targets

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run(name: str, target: Target, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """What n damaged files do to a target."""
    rng = random.Random(f"{seed} {name}")
    found: dict[str, Any] = {"target": name, "cases": n, "refused": 0, "seconds": 0.0, "mb": 0.0, "findings": []}
    for case in range(n):
        data = mutate(rng.choice(target.seeds), rng)
        _CLEAR.write_text("5")  # the peak starts anew
        before, started = _mb("VmRSS"), time.process_time()
        reason = ""
        try:
            found["refused"] += target.run(data, folder) is not None
        except BaseException:
            reason = traceback.format_exc(limit=-4)
        seconds, mb = time.process_time() - started, _mb("VmHWM") - before
        if not reason and (seconds > MOST_SECONDS or mb > MOST_MB):
            reason = f"{seconds:.1f} s, {mb:.0f} MB"
        found["seconds"], found["mb"] = max(found["seconds"], seconds), max(found["mb"], mb)
        if reason:
            kept = folder / f"finding-{name}-{case}"
            kept.write_bytes(data)
            found["findings"].append(f"{kept}: {reason}")
    return found


def _mb(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    folder, n, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every = targets()
    for name in sys.argv[4:] or every:
        target = every[name]
        for data in target.seeds:  # they are valid, and load what is loaded only once
            target.run(data, folder)
        most = int((_mb("VmSize") + 2048) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        print(json.dumps(run(name, target, n, seed, folder)), flush=True)


if __name__ == "__main__":
    main()
