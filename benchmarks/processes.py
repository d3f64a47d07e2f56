"""Training in several processes beside one: seconds per epoch, and whether the error is the same.

    python -m benchmarks.processes [--quick] [--json FILE] [--rounds 5] [--processes 2 4]

Default MFDMC on MovieLens-1M (first fold) and on 4 million planted ratings of 24,000 users and 6,000 items. A run is
torchrun with one thread a process, each process pinned to a core of its own where there are enough. Runs take turns:
one process, several that share memory, and two by messages of torch.distributed alone, as between machines.
An epoch's time is the median over the epochs after the first, so that start-up, reading and the first dealing do not
count; a ratio is of two runs of one round. Beside wall time stands the processor's time of the process that took most:
on a machine with other work the first waits for that, as every process of a run waits for all others; the second does
not, and counts what a process waits at work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mfdmc_fast.epochs
from benchmarks.results_file import RESULTS, provenance, write_json
from benchmarks.suite.datasets import DATASETS
from mfdmc_fast import MFDMC
from mfdmc_fast.data import Ratings, holdout, make_planted_ratings
from mfdmc_fast.distributed import joined
from mfdmc_fast.training import Callback

MESSAGES = "messages"
PLANTED = {"n_users": 24_000, "n_items": 6_000, "n_ratings": 4_000_000}
QUICK = {"n_users": 600, "n_items": 300, "n_ratings": 30_000}


def write_split(folder: Path, name: str) -> None:
    """Training and test ratings as columns, so that no run spends time on making them."""
    if name == "ml-1m":
        split = DATASETS["ml-1m"].split(0)
    else:
        split = holdout(make_planted_ratings(**(PLANTED if name == "planted" else QUICK), seed=1), 0.05, 1)
    for part, ratings in (("train", split.train), ("test", split.test)):
        np.savez(folder / f"{name}-{part}.npz", u=ratings.users, i=ratings.items, r=ratings.ratings)


def read_part(folder: Path, name: str, part: str) -> Ratings:
    """What `write_split` wrote."""
    with np.load(folder / f"{name}-{part}.npz") as columns:
        return Ratings(columns["u"], columns["i"], columns["r"])


class Clock(Callback):
    """Wall and processor seconds of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []

    def on_train_start(self, model: Any, n_batches: int, epochs: int) -> None:
        self._start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, record: Any, model: Any) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds.append((now[0] - self._start[0], now[1] - self._start[1]))
        self._start = now


def child(folder: Path, name: str, epochs: int, way: str, out: Path) -> None:
    """One of the processes of a run."""
    cores = sorted(os.sched_getaffinity(0))
    if way == MESSAGES:
        mfdmc_fast.epochs.open_rings = lambda processes: None  # type: ignore[attr-defined]
    with joined("cpu") as processes:
        if processes.size <= len(cores):
            os.sched_setaffinity(0, {cores[processes.rank]})
        train, test = read_part(folder, name, "train"), read_part(folder, name, "test")
        clock = Clock()
        model = MFDMC(seed=1, epochs=epochs).fit(train, callbacks=[clock])
        wall, processor = np.median(clock.seconds[1:], axis=0).tolist()
        result = {
            "rmse": model.evaluate(test)["rmse"],
            "epoch_seconds": wall,
            "epoch_processor_seconds": float(processes.gather(processor).max()),
            "batches": -(-len(train) // model.history_.batch_size),
        }
        if processes.is_first:
            out.write_text(json.dumps(result))


def run(folder: Path, name: str, epochs: int, n: int, way: str) -> dict[str, Any]:
    """What `child` measures in n processes."""
    out = folder / "result.json"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command = [*start, "-m", "benchmarks.processes", "--child", str(folder), name, str(epochs), way, str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(json.loads(out.read_text()))


def measure(folder: Path, name: str, epochs: int, rounds: int, numbers: list[int]) -> dict[str, Any]:
    """Runs in turn, and how many times as fast as one process several are."""
    write_split(folder, name)
    ways = {str(n): (n, "memory") for n in [1, *numbers]} | {f"2, {MESSAGES}": (2, MESSAGES)}
    runs: dict[str, list[dict[str, Any]]] = {label: [] for label in ways}
    for _ in range(rounds):
        for label, (n, way) in ways.items():
            runs[label].append(run(folder, name, epochs, n, way))
            print(name, label, json.dumps(runs[label][-1]), flush=True)

    def ratios(label: str, what: str) -> list[float]:
        return [one[what] / many[what] for one, many in zip(runs["1"], runs[label], strict=True)]

    return {
        "epochs": epochs,
        "rmse": {label: of_label[0]["rmse"] for label, of_label in runs.items()},
        "speed": {label: ratios(label, "epoch_seconds") for label in runs},
        "speed_by_processor_time": {label: ratios(label, "epoch_processor_seconds") for label in runs},
        "runs": runs,
    }


def main() -> None:
    """Run all, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few ratings in one and two processes: only that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="beside one")
    parser.add_argument("--data", nargs="+", choices=["ml-1m", "planted"], default=["ml-1m", "planted"])
    parser.add_argument("--json", type=Path, help=f"file to write, such as {RESULTS / 'processes.json'}")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, name, epochs, way, out = args.child
        child(Path(folder), name, int(epochs), way, Path(out))
        return
    numbers, data = " ".join(map(str, args.processes)), " ".join(args.data)
    command = f"python -m benchmarks.processes --rounds {args.rounds} --processes {numbers} --data {data}"
    with tempfile.TemporaryDirectory(prefix="mfdmc-processes-") as folder:
        if args.quick:
            command, results = "python -m benchmarks.processes --quick", measure(Path(folder), "quick", 3, 1, [2])
            results = {"quick": results}
        else:
            of_data = {"ml-1m": 60, "planted": 12}
            results = {
                name: measure(Path(folder), name, of_data[name], args.rounds, args.processes) for name in args.data
            }
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, {**provenance(command), **results})


if __name__ == "__main__":
    main()
