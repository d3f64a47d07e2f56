"""How training speed and memory of the native engine scale, on generated ratings; beside torch on large tables.

    python -m benchmarks.cpu_scaling [--only large_tables|memory|sweeps] [--largest 100000000] [--json FILE]

- large_tables: 138,000 users, 27,000 items, 20 M ratings in batches of 65,536, tables far larger than the cache; one
  epoch of the engine beside steps of the compiled loss in two forms, softmax of the whole tables and softmax of the
  rows of each rating. Torch's Adam sweeps all rows in every step in both.
- memory: two epochs of `training.fit` on 480,000 users, 18,000 items and 100 M ratings that are in (user, item) order.
  Bytes per rating are the peak of the resident memory above what the process held before the ratings were made, less
  parameters and Adam's moments ("tables"). And the same for ratings in random order, which are sorted first. Each in a
  process of its own; needs 5 GB.
- sweeps: M ratings/s over clusters, view_dim, threads and data size, each at the default settings of the rest.

Items are drawn by Zipf's law and users with log-normal activity; the same pair may be drawn twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu_training import make_model, spread, table_loss, torch_speed
from benchmarks.results_file import provenance, write_json
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import BatchIterator, RatingsDataset
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import reference
from mfdmc_fast.ops.types import LossWeights
from mfdmc_fast.training import fit

BLOCK_USERS = 4096


def zipf_ratings(n_users: int, n_items: int, n_ratings: int, seed: int = 0) -> RatingsDataset:
    """Random ratings in (user, item) order, made block by block so that nothing but the result takes memory."""
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(sigma=1.0, size=n_users)
    counts = rng.multinomial(n_ratings, activity / activity.sum())
    popularity = np.cumsum(1.0 / np.arange(1, n_items + 1) ** 0.9)
    item_of_rank = rng.permutation(n_items).astype(np.int32)
    users, items = np.empty(n_ratings, dtype=np.int32), np.empty(n_ratings, dtype=np.int32)
    ratings = np.empty(n_ratings, dtype=np.float32)
    at = 0
    for first in range(0, n_users, BLOCK_USERS):
        of_block = counts[first : first + BLOCK_USERS]
        upto = at + int(of_block.sum())
        user = np.repeat(np.arange(first, first + len(of_block)), of_block)
        rank = np.searchsorted(popularity, rng.random(upto - at) * popularity[-1])
        key = np.sort(user * n_items + item_of_rank[rank])
        users[at:upto], items[at:upto] = np.divmod(key, n_items)
        ratings[at:upto] = rng.integers(1, 6, upto - at)
        at = upto
    numbers = (np.arange(1, n + 1) for n in (n_users, n_items))
    return RatingsDataset(users, items, ratings, *(Vocabulary.from_values(ids) for ids in numbers))


def shuffled(dataset: RatingsDataset) -> RatingsDataset:
    """The same ratings in random order."""
    order = np.random.default_rng(1).permutation(len(dataset)).astype(np.int32)
    return dataset.take(order)  # type: ignore[arg-type]


def engine_speed(dataset: RatingsDataset, config: MFDMCConfig, epochs: int) -> dict[str, Any]:
    """M ratings/s of single epochs, without the first."""
    runner = make_epochs(make_model(dataset, config), BatchIterator(dataset, config.batch_size, 0), "cpu")
    times = []
    for epoch in range(1, epochs + 2):
        start = time.perf_counter()
        runner.run(epoch, [])
        times.append(time.perf_counter() - start)
    return spread([len(dataset) / t / 1e6 for t in times[1:]])


def gathered_loss(model: MFDMCModel, weights: LossWeights) -> Any:
    """The loss with the rows of each rating gathered first: work in proportion to the batch, not to the tables."""
    sides = (model.user.tensors(), model.item.tensors())

    def total(user_idx: Tensor, item_idx: Tensor, ratings: Tensor) -> Tensor:
        embeddings, loss = [], torch.zeros(())
        prediction = torch.full_like(ratings, model.global_mean)
        for side, idx in zip(sides, (user_idx, item_idx), strict=True):
            log_w = reference.log_assignment_weights(side.assignment_logits.index_select(0, idx), side.n_clusters)
            per_view = reference.view_embeddings(log_w.exp(), side.centers, side.n_clusters)
            z = reference.combine_views(per_view, model.config.combine)
            embeddings.append(z)
            assert side.bias is not None
            bias = side.bias.index_select(0, idx)
            prediction = prediction + bias
            loss = loss + weights.spread * reference.spread(side.centers, side.n_clusters, model.spread_margin)
            loss = loss + (
                weights.proximity * reference.proximity(log_w.exp(), side.centers, per_view, side.n_clusters).mean()
                + weights.entropy * reference.normalized_entropy(log_w, side.n_clusters).mean()
                + weights.l2 * z.square().sum(1).mean()
                + weights.bias_l2 * bias.square().mean()
            )
        prediction = prediction + (embeddings[0] * embeddings[1]).sum(1)
        return loss + (prediction - ratings).square().mean()

    return total


def large_tables(threads: int, n_ratings: int) -> dict[str, Any]:
    """The engine and torch on tables far larger than the cache."""
    dataset = zipf_ratings(138_000, 27_000, n_ratings)
    config = MFDMCConfig(batch_size=65_536, epochs=4)
    result: dict[str, Any] = {"n_users": 138_000, "n_items": 27_000, "n_ratings": n_ratings, "batch_size": 65_536}
    result["engine_m_ratings_per_s"] = engine_speed(dataset, config, 2)
    result["engine_adagrad_m_ratings_per_s"] = engine_speed(
        dataset, MFDMCConfig(batch_size=65_536, epochs=4, optimizer="adagrad"), 2
    )
    compiled = {
        f"{name}, {n} threads": torch_speed(dataset, config, n, 3.0, form, compiled=True)
        for name, form in (("whole tables", table_loss), ("gathered rows", gathered_loss))
        for n in sorted({1, threads})
    }
    torch.set_num_threads(threads)
    best = max(compiled.values())
    result |= {
        "compiled_m_ratings_per_s": compiled,
        "ratio_vs_compiled": result["engine_m_ratings_per_s"]["median"] / best,
    }
    return result


def resident(peak: bool = False) -> int:
    """Bytes of resident memory, now or at most since the peak was last forgotten."""
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory_child(n_ratings: int, order: str) -> dict[str, Any]:
    """In a process of its own: two epochs, the memory they took, and the speed of the second, as `engine_speed`."""
    n_users, n_items = max(1000, 480_000 * n_ratings // 10**8), 18_000
    config = MFDMCConfig(epochs=2, prune=False)
    # what the first fit loads and keeps is not a matter of the ratings
    small = zipf_ratings(100, 50, 2000)
    fit(make_model(small, config), small)
    before = resident()
    dataset = zipf_ratings(n_users, n_items, n_ratings)
    if order == "random":
        dataset = shuffled(dataset)
    model = make_model(dataset, config)
    tables = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the ratings
    start = time.perf_counter()
    holder = [dataset]
    del dataset
    history = fit(model, holder.pop())
    seconds = time.perf_counter() - start
    peak = resident(peak=True)
    return {
        "n_users": n_users,
        "n_items": n_items,
        "n_ratings": n_ratings,
        "order": order,
        "batch_size": history.batch_size,
        "tables_bytes": tables,
        "peak_bytes": peak - before,
        "bytes_per_rating_and_tables": (peak - before) / n_ratings,
        "bytes_per_rating": (peak - before - tables) / n_ratings,
        "fit_seconds": seconds,
        "epoch_seconds": [record.seconds for record in history.epochs],
        "epoch_m_ratings_per_s": n_ratings / history.epochs[1].seconds / 1e6,
    }


def memory(n_ratings: int, order: str) -> dict[str, Any]:
    """`memory_child` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cpu_scaling", "--memory-child", str(n_ratings), order]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout))


def sweeps(threads: int, largest: int) -> dict[str, Any]:
    """M ratings/s over one setting at a time."""
    movielens = zipf_ratings(6040, 3706, 800_000)

    def median(dataset: RatingsDataset, epochs: int = 10, **settings: Any) -> float:
        return float(engine_speed(dataset, MFDMCConfig(epochs=epochs + 1, **settings), epochs)["median"])

    result: dict[str, Any] = {
        "n_clusters": {k: median(movielens, n_clusters=k) for k in (2, 5, 10, 20, 40)},
        "view_dim": {d: median(movielens, view_dim=d) for d in (2, 4, 8, 16, 32)},
        "threads": {},
        "n_ratings": {},
    }
    for n in sorted({1, threads, os.cpu_count() or 1}):
        torch.set_num_threads(n)
        result["threads"][n] = median(movielens)
    torch.set_num_threads(threads)
    for n in (10**5, 10**6, 10**7, 10**8):
        if n <= largest:
            users, items = max(500, 480_000 * n // 10**8), min(18_000, max(500, n // 250))
            result["n_ratings"][n] = median(zipf_ratings(users, items, n), epochs=10 if n < 10**7 else 2)
    return result


def main() -> None:
    """Run the parts that are wanted, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["large_tables", "memory", "sweeps"], help="one part; unset: all")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--largest", type=int, default=10**8, help="ratings of the largest data")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--memory-child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_child:
        print(json.dumps(memory_child(int(args.memory_child[0]), args.memory_child[1])))
        return
    parts: dict[str, Any] = {}
    if args.only in (None, "memory"):
        movielens = engine_speed(zipf_ratings(6040, 3706, 800_000), MFDMCConfig(epochs=11), 10)
        runs = {order: memory(args.largest, order) for order in ("sorted", "random")}
        ratio = movielens["median"] / runs["sorted"]["epoch_m_ratings_per_s"]
        parts["memory"] = {**runs, "movielens_1m_shape": movielens, "slower_per_rating": ratio}
        print(json.dumps(parts["memory"], indent=1), flush=True)
    if args.only in (None, "sweeps"):
        parts["sweeps"] = sweeps(args.threads, args.largest)
        print(json.dumps(parts["sweeps"], indent=1), flush=True)
    if args.only in (None, "large_tables"):
        parts["large_tables"] = large_tables(args.threads, min(args.largest, 20_000_000))
        print(json.dumps(parts["large_tables"], indent=1), flush=True)
    if args.json:
        command = f"python -m benchmarks.cpu_scaling --threads {args.threads} --largest {args.largest}"
        if args.only:
            command += f" --only {args.only}"
        write_json(args.json, {**provenance(command), **parts})


if __name__ == "__main__":
    main()
