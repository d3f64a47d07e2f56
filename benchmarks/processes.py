"""Training in several processes beside one: seconds per epoch, and whether the error is the same.

    python -m benchmarks.processes [--quick] [--json FILE] [--rounds 5] [--processes 1 2 4]

Default MFDMC on MovieLens-1M (first fold) and on 4 million planted ratings of 24,000 users and 6,000 items. A run is
torchrun with one thread a process, each process pinned to a core of its own where there are enough. Runs of different
numbers of processes take turns. An epoch's time is the median over the epochs after the first, so start-up, reading and
the first dealing do not count; a ratio is of two runs of one round. `exchange_ms` is the time of a batch's messages
alone: as many bytes to and from each process, again and again, without any work in between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import RESULTS, provenance, write_json
from benchmarks.suite.datasets import DATASETS
from mfdmc_fast import MFDMC
from mfdmc_fast.data import Ratings, holdout, make_planted_ratings
from mfdmc_fast.distributed import Processes, joined

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


def exchange_ms(processes: Processes, n_items: int, width: int, turns: int = 100) -> float:
    """Median milliseconds of the messages of one batch: embeddings, their gradients, and the parts of the centers'."""
    sizes = [n_items // processes.size**2 * width * 4] * processes.size, [8 * 5 * 80] * processes.size
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        for size in (sizes[0], sizes[0], sizes[1]):
            sent, received = np.zeros(sum(size), np.uint8), np.zeros(sum(size), np.uint8)
            processes.all_to_all(sent, size, received, size)
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def child(folder: Path, name: str, epochs: int, out: Path) -> None:
    """One of the processes of a run."""
    cores = sorted(os.sched_getaffinity(0))
    with joined("cpu") as processes:
        if processes.size <= len(cores):
            os.sched_setaffinity(0, {cores[processes.rank]})
        train, test = read_part(folder, name, "train"), read_part(folder, name, "test")
        model = MFDMC(seed=1, epochs=epochs).fit(train)
        messages = exchange_ms(processes, len(model.items_), 33) if processes.size > 1 else 0.0
        seconds = [record.seconds for record in model.history_.epochs[1:]]
        result = {
            "rmse": model.evaluate(test)["rmse"],
            "epoch_seconds": statistics.median(seconds),
            "fastest_epoch_seconds": min(seconds),
            "exchange_ms": messages,
            "batches": -(-len(train) // model.history_.batch_size),
        }
        if processes.is_first:
            out.write_text(json.dumps(result))


def run(folder: Path, name: str, epochs: int, n: int) -> dict[str, Any]:
    """What `child` measures in n processes."""
    out = folder / "result.json"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "-m", "benchmarks.processes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, "--child", str(folder), name, str(epochs), str(out)], check=True, env=environment)
    return dict(json.loads(out.read_text()))


def measure(folder: Path, name: str, epochs: int, rounds: int, numbers: list[int]) -> dict[str, Any]:
    """Runs in turn, and their ratios."""
    write_split(folder, name)
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in numbers}
    for _ in range(rounds):
        for n in numbers:
            runs[n].append(run(folder, name, epochs, n))
            print(name, n, json.dumps(runs[n][-1]), flush=True)
    return {
        "epochs": epochs,
        "rmse": {n: of_n[0]["rmse"] for n, of_n in runs.items()},
        "speed_beside_one_process": {
            n: [one["epoch_seconds"] / many["epoch_seconds"] for one, many in zip(runs[numbers[0]], of_n, strict=True)]
            for n, of_n in runs.items()
        },
        "runs": runs,
    }


def main() -> None:
    """Run all, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few ratings in one and two processes: only that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="others stand beside the first")
    parser.add_argument("--data", nargs="+", choices=["ml-1m", "planted"], default=["ml-1m", "planted"])
    parser.add_argument("--json", type=Path, help=f"file to write, such as {RESULTS / 'processes.json'}")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), args.child[1], int(args.child[2]), Path(args.child[3]))
        return
    numbers, data = " ".join(map(str, args.processes)), " ".join(args.data)
    command = f"python -m benchmarks.processes --rounds {args.rounds} --processes {numbers} --data {data}"
    with tempfile.TemporaryDirectory(prefix="mfdmc-processes-") as folder:
        if args.quick:
            command, results = "python -m benchmarks.processes --quick", measure(Path(folder), "quick", 3, 1, [1, 2])
            results = {"quick": results}
        else:
            epochs = {"ml-1m": 60, "planted": 12}
            results = {
                name: measure(Path(folder), name, epochs[name], args.rounds, args.processes) for name in args.data
            }
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, {**provenance(command), **results})


if __name__ == "__main__":
    main()
