"""Preparing text as a store, and training from disk beside training in memory.

    python -m benchmarks.ingest [--quick] [--ratings 100000000] [--beyond] [--json FILE] [--folder DIR]

- prepare: generated ratings as text, one line a rating in random order, then `mfdmc prepare`; rows/s and the peak of
  the resident memory of its process. Users (480,000) have log-normal activity, items (18,000) a flattened Zipf law
  (Zipf and Mandelbrot, shift 1,000), so that few pairs are drawn twice.
- train: `MFDMC.fit` for three epochs on the store, with `memory_limit` (2 GiB) and without, in turn, each in a process
  of its own; M ratings/s of the fastest epoch, as other work on the machine only ever slows one down; peak of the
  resident memory, saving included; whether the parameters are the same, bit by bit. And once more from disk, with the
  store's pages dropped from the system's cache before every epoch.
- beyond: one epoch of FunkMF over 2^31 + 200,000,000 ratings. Columns are files that take no space where they are 0;
  the last 100 million ratings differ, and the loss of the epoch must say so.

Needs 15 bytes a rating of text, and four times the 5 bytes a rating of the store, in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from benchmarks.cpu_scaling import resident
from benchmarks.results_file import RESULTS, provenance, write_json
from mfdmc_fast import MFDMC, FunkMF
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import ReadReport, Store, prepare
from mfdmc_fast.data.store_files import FileEntry, Manifest, dtype_of, write_manifest
from mfdmc_fast.memory import parse_size, resident_bytes, training_memory
from mfdmc_fast.model import Predictor
from mfdmc_fast.training import Callback

BLOCK = 2_000_000
EPOCHS = 3
LEAST = "least"


def write_text(path: Path, n_ratings: int, seed: int = 0) -> None:
    """Generated ratings, a line each, in random order."""
    rng = np.random.default_rng(seed)
    n_users, n_items = max(1000, 480_000 * n_ratings // 10**8), 18_000
    activity = np.cumsum(rng.lognormal(sigma=1.0, size=n_users))
    popularity = np.cumsum(1.0 / np.arange(1001, n_items + 1001))
    user_ids = rng.permutation(6 * n_users)[:n_users] + 1
    item_ids = rng.permutation(n_items) + 1
    with pa.OSFile(str(path), "wb") as file:
        file.write(b"user_id,item_id,rating\n")
        for start in range(0, n_ratings, BLOCK):
            n = min(BLOCK, n_ratings - start)
            users, items = (
                np.searchsorted(law, rng.random(n) * law[-1], side="right") for law in (activity, popularity)
            )
            table = pa.table({"u": user_ids[users], "i": item_ids[items], "r": rng.integers(1, 11, n) / 2})
            csv.write_csv(table, file, csv.WriteOptions(include_header=False))


def prepare_child(text: Path, store: Path) -> dict[str, Any]:
    """In a process of its own: prepare the store."""
    cpu, start = time.process_time(), time.perf_counter()
    made = prepare(text, store)
    seconds = time.perf_counter() - start
    return {
        "rows": made.report.rows,
        "ratings": len(made),
        "seconds": seconds,
        "m_rows_per_s": made.report.rows / seconds / 1e6,
        "processor_ns_per_row": (time.process_time() - cpu) / made.report.rows * 1e9,
        "peak_bytes": resident(peak=True),
        "text_bytes": text.stat().st_size,
        "store_bytes": sum(path.stat().st_size for path in store.iterdir()),
    }


class Forget(Callback):
    """Drops the pages of a store from the system's cache before every epoch."""

    def __init__(self, store: Store) -> None:
        self._paths = [store.item_path, store.rating_path]

    def on_train_start(self, model: Predictor, n_batches: int, epochs: int) -> None:
        for path in self._paths:
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    def on_epoch_end(self, record: Any, model: Predictor) -> None:
        self.on_train_start(model, 0, 0)


def bytes_of(limit: str | None, store: Store) -> int | None:
    """A memory limit in bytes; `least`: hardly more than streaming takes."""
    if limit == LEAST:
        needed = training_memory(MFDMCConfig(), store.n_users, store.n_items, len(store)).streamed
        return resident_bytes() + needed + (8 << 20)
    return None if limit is None else parse_size(limit)


def train_child(path: Path, limit: str | None, cold: bool) -> dict[str, Any]:
    """In a process of its own: train, save, and what it took."""
    store = Store(path)
    estimator = MFDMC(epochs=EPOCHS, seed=1)
    start = time.perf_counter()
    model = estimator.fit(store, memory_limit=bytes_of(limit, store), callbacks=[Forget(store)] if cold else [])
    fit_seconds = time.perf_counter() - start
    if model.history_.streamed != (limit is not None):
        raise SystemExit(f"with the memory limit {limit}, streamed is {model.history_.streamed}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model.save(Path(folder) / "model.safetensors")
    digest = hashlib.sha256()
    for parameter in model.model_.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    seconds = [record.seconds for record in model.history_.epochs]
    return {
        "streamed": model.history_.streamed,
        "batch_size": model.history_.batch_size,
        "epoch_seconds": seconds,
        "fit_seconds": fit_seconds,
        "m_ratings_per_s": len(store) / min(seconds) / 1e6,
        "peak_bytes": resident(peak=True),
        "parameters_sha256": digest.hexdigest(),
        "train_mse": model.history_.epochs[-1].loss["mse"],
    }


def sparse_store(folder: Path, n: int, n_marked: int) -> Store:
    """A store of n ratings whose last ones are 5 for item 1, and all others 1 for item 0; few bytes on disk."""
    n_users = 1000
    folder.mkdir()
    columns: dict[str, Any] = {
        "users.ids.i64": np.arange(n_users),
        "items.ids.i64": np.arange(2),
        "user_offsets.i64": np.linspace(0, n, n_users + 1).astype(np.int64),
        "item_counts.i64": np.array([n - n_marked, n_marked]),
        "items.i32": 1,
        "ratings.u8": 1,
    }
    files = {}
    for name, column in columns.items():
        dtype = dtype_of(name)
        found = hashlib.blake2b(digest_size=32)
        with open(folder / name, "wb") as file:
            if isinstance(column, np.ndarray):
                column.astype(dtype).tofile(file)
                found.update(column.astype(dtype).tobytes())
            else:  # zeros that are not written
                zeros, marks = np.zeros(BLOCK, dtype).tobytes(), np.full(BLOCK, column, dtype).tobytes()
                for block in range(n // BLOCK):
                    marked = block * BLOCK >= n - n_marked
                    found.update(marks if marked else zeros)
                    if marked:
                        file.seek(block * len(marks))
                        file.write(marks)
        files[name] = FileEntry((folder / name).stat().st_size, found.hexdigest())
    kinds = {"user_ids": "int", "item_ids": "int", "timestamps": None}
    manifest = Manifest(
        ratings=n,
        users=n_users,
        items=2,
        rating_values=[1.0, 5.0],
        rating_scale=(1.0, 5.0),
        report=ReadReport(),
        sources=[],
        files=files,
        **kinds,  # type: ignore[arg-type]
    )
    write_manifest(folder, manifest)
    return Store(folder)


def beyond_child(folder: Path, n: int, n_marked: int) -> dict[str, Any]:
    """In a process of its own: one epoch over a store of n ratings, the last of which are marked."""
    n, n_marked = n // BLOCK * BLOCK, n_marked // BLOCK * BLOCK
    store = sparse_store(folder / "sparse", n, n_marked)
    bytes_on_disk = sum(path.stat().st_blocks * 512 for path in store.path.iterdir())
    start = time.perf_counter()
    model = FunkMF(n_factors=2, epochs=1, batch_size=1 << 22, learning_rate=1e-9, learning_rate_biases=1e-9, seed=1)
    model.fit(store, memory_limit="4GiB")
    share = n_marked / n
    expected = share * (5 - (1 + 4 * share)) ** 2 + (1 - share) * (4 * share) ** 2
    found = model.history_.epochs[0].loss["mse"]
    if abs(model.model_.train_mean - (1 + 4 * share)) > 1e-9 or abs(found - expected) > 1e-3 * expected:
        raise SystemExit(
            f"the epoch's squared error is {found}, not {expected}: ratings were not read, or not as they are"
        )
    return {
        "n_ratings": n,
        "bytes_on_disk": bytes_on_disk,
        "fit_seconds": time.perf_counter() - start,
        "epoch_seconds": model.history_.epochs[0].seconds,
        "streamed": model.history_.streamed,
        "mse": found,
        "expected_mse": expected,
        "peak_bytes": resident(peak=True),
    }


def child(*arguments: Any) -> dict[str, Any]:
    """A part in a process of its own, which knows its own peak of memory."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--child", *map(str, arguments)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def run_child(kind: str, *arguments: str) -> dict[str, Any]:
    """What `child` asks for."""
    if kind == "prepare":
        return prepare_child(Path(arguments[0]), Path(arguments[1]))
    if kind == "train":
        return train_child(Path(arguments[0]), arguments[1] or None, arguments[2] == "cold")
    return beyond_child(Path(arguments[0]), int(arguments[1]), int(arguments[2]))


def measure(folder: Path, n_ratings: int, limit: str, rounds: int) -> dict[str, Any]:
    """Prepare once, train from disk and in memory in turn."""
    text, store = folder / "ratings.csv", folder / "ratings.store"
    write_text(text, n_ratings)
    result: dict[str, Any] = {"prepare": child("prepare", text, store)}
    print(json.dumps(result), flush=True)
    text.unlink()
    runs: dict[str, list[dict[str, Any]]] = {"disk": [], "memory": [], "disk, cache dropped": []}
    for _ in range(rounds):
        for name, options in (("disk", (limit, "")), ("memory", ("", "")), ("disk, cache dropped", (limit, "cold"))):
            runs[name].append(child("train", store, *options))
            print(name, json.dumps(runs[name][-1]), flush=True)
    if len({run["parameters_sha256"] for of_name in runs.values() for run in of_name}) > 1:
        raise SystemExit("training from disk and in memory gave different parameters")

    def ratios(name: str) -> list[float]:
        pairs = zip(runs[name], runs["memory"], strict=True)
        return [run["m_ratings_per_s"] / beside["m_ratings_per_s"] for run, beside in pairs]

    return {
        **result,
        "memory_limit": limit,
        "epochs": EPOCHS,
        "same_parameters": True,
        "disk_beside_memory": ratios("disk"),
        "dropped_cache_beside_memory": ratios("disk, cache dropped"),
        "train": runs,
    }


def main() -> None:
    """Run the parts that are wanted, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a million ratings; only that it runs")
    parser.add_argument("--ratings", type=int, default=10**8)
    parser.add_argument("--rounds", type=int, default=2, help="of training from disk and in memory")
    parser.add_argument("--beyond", action="store_true", help="also the epoch over more than 2^31 ratings")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--json", type=Path, help=f"file to write, such as {RESULTS / 'ingest.json'}")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_child(*args.child)))
        return
    n_ratings, rounds, limit = (10**6, 1, LEAST) if args.quick else (args.ratings, args.rounds, "2GiB")
    command = f"python -m benchmarks.ingest --ratings {n_ratings} --rounds {rounds}{' --beyond' * args.beyond}"
    folder = Path(tempfile.mkdtemp(prefix="mfdmc-ingest-", dir=args.folder))
    try:
        results = measure(folder, n_ratings, limit, rounds)
        if args.beyond:
            results["beyond"] = child("beyond", folder, 2**31 + 200_000_000, 100_000_000)
        if args.quick:
            results["beyond"] = child("beyond", folder, 4_000_000, 2_000_000)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, {**provenance(command), **results})


if __name__ == "__main__":
    main()
