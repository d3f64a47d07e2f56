"""Reads damaged files in a process of limited memory.

    python fuzz_cases.py FOLDER CASES SEED [TARGET ...]    damages files by a seed; prints one JSON line a target
    python fuzz_cases.py FOLDER corpus                     replays the corpus; prints one JSON line a file

The case at work is always in FOLDER, so that it is known where the process dies. One that hangs ends it (SIGVTALRM).
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from fuzz_corpus import CORPUS
from fuzz_mutations import mutate
from fuzz_targets import MOST_MB, MOST_SECONDS, Target, targets

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run(name: str, target: Target, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """What n damaged files do to a target."""
    rng = random.Random(f"{seed} {name}")
    found: dict[str, Any] = {"target": name, "cases": n, "refused": 0, "seconds": 0.0, "mb": 0.0, "findings": []}
    for case in range(n):
        data = mutate(rng.choice(target.seeds), rng)
        result = measured(target, data, folder)
        found["refused"] += result["said"] is not None
        found["seconds"], found["mb"] = max(found["seconds"], result["seconds"]), max(found["mb"], result["mb"])
        if result["finding"]:
            kept = folder / f"finding-{name}-{case}"
            kept.write_bytes(data)
            found["findings"].append(f"{kept}: {result['finding']}")
    return found


def measured(target: Target, data: bytes, folder: Path) -> dict[str, Any]:
    """What a target says of a file, its seconds and MB, and what is wrong about that; "" where nothing is."""
    _CLEAR.write_text("5")  # the peak starts anew
    before, started = _mb("VmRSS"), time.process_time()
    said, finding = None, ""
    signal.setitimer(signal.ITIMER_VIRTUAL, 4 * MOST_SECONDS)
    try:
        said = target.run(data, folder)
    except BaseException:
        finding = traceback.format_exc(limit=-4)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    seconds, mb = time.process_time() - started, _mb("VmHWM") - before
    if not finding and (seconds > MOST_SECONDS or mb > MOST_MB):
        finding = f"{seconds:.1f} s, {mb:.0f} MB"
    return {"said": said, "finding": finding, "seconds": seconds, "mb": mb}


def _mb(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    folder, replays = Path(sys.argv[1]), sys.argv[2] == "corpus"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every = targets()
    for name in sys.argv[4:] or every:
        target = every[name]
        for data in target.seeds:  # which loads what is loaded only once
            target.run(data, folder)
        most = int((_mb("VmSize") + 2048) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        if not replays:
            # a run that is continued takes as long as four files that are read
            n = int(sys.argv[2]) // 4 if target.sealed else int(sys.argv[2])
            print(json.dumps(run(name, target, n, int(sys.argv[3]), folder)), flush=True)
        for case in (case for case in CORPUS if replays and case.target == name):
            print(json.dumps({"case": case.name, **measured(target, case.make(target.seeds), folder)}), flush=True)


if __name__ == "__main__":
    main()
