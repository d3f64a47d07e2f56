"""Training speed on the CPU: the native engine beside torch (eager and compiled), LIBMF, Surprise and Cornac.

    python -m benchmarks.cpu_training [--quick] [--threads 2] [--json FILE]

All in one run on the same ratings (MovieLens-1M, fold 1 held out; generated ratings of that shape where it is missing)
and the same threads, so the ratios hold on any machine although the times do not. Every contestant trains with all loss
terms it has and its optimizer. Before any timing, the engine's loss is compared with the oracle's.

- ours: `MFDMC.fit` as users call it; `fit` counts all of it, `epoch` the single epochs of one fit
- eager, compiled: the same loss and Adam in torch, in its fastest form known here (softmax and projection of the whole
  tables, then gathers), with one thread and with all; the better one counts. Eager and LIBMF take turns with ours, and
  ratios are taken round by round; compiled comes last, as what it starts stays in the process
- LIBMF: its own mf-train, named by LIBMF_TRAIN or found on PATH; the difference of two iteration counts, so that
  reading its text input does not count
- Surprise SVD and Cornac MF where they are installed
- time to quality: whole fits of ever more epochs, learning rates in inverse proportion, seconds and test RMSE of each;
  LIBMF's seconds are iterations times the seconds of one. The number of epochs is read off the test fold for all of
  them: this measures speed, not accuracy.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results_file import provenance, write_json
from mfdmc_fast.config import MFDMCConfig, with_rates
from mfdmc_fast.data import BatchIterator, Ratings, RatingsDataset, column_folds, make_planted_ratings, read_ratings
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator
from mfdmc_fast.evaluate import fold_result
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import reference
from mfdmc_fast.ops.types import LossWeights
from mfdmc_fast.optim import make_optimizer
from mfdmc_fast.pruning import remove_clusters
from mfdmc_fast.testing import data_folder

SHAPES: dict[str, dict[str, Any]] = {
    "concat V=8 K=10 d=4": {"n_views": 8, "n_clusters": 10, "view_dim": 4},
    "sum V=4 K=10 d=16": {"n_views": 4, "n_clusters": 10, "view_dim": 16, "combine": "sum", "center_scale": 0.5},
    "concat V=16 K=10 d=4": {"n_views": 16, "n_clusters": 10, "view_dim": 4},
    "concat V=8 K=20 d=8": {"n_views": 8, "n_clusters": 20, "view_dim": 8},
}
MAIN_SHAPE = "concat V=8 K=10 d=4"
QUALITIES = (0.8600, 0.8505)  # test RMSE
LIBMF_ITERATIONS = (10, 50)


def ml_1m() -> tuple[Ratings, Ratings, str]:
    """Training and test ratings, and what they are."""
    folder = data_folder()
    if folder is None:
        ratings = make_planted_ratings(6040, 3706, 1_000_000)
        rows = np.random.default_rng(0).permutation(len(ratings))
        cut = len(ratings) // 5
        return ratings.take(rows[cut:]), ratings.take(rows[:cut]), "generated, MovieLens-1M's shape"
    split = column_folds(read_ratings(folder / "ml-1m" / "ratings.parquet", keep=("fold",)), "fold")[0]
    return split.train, split.test, "MovieLens-1M, fold 1 held out"


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def fit_speed(make: Callable[[int], RatingEstimator], train: Ratings, epochs: int) -> float:
    """M ratings/s of a whole fit."""
    start = time.perf_counter()
    make(epochs).fit(train)
    return len(train) * epochs / (time.perf_counter() - start) / 1e6


def epoch_speed(make: Callable[[int], RatingEstimator], train: Ratings, epochs: int) -> dict[str, float]:
    """M ratings/s of the single epochs of a fit."""
    history = make(epochs).fit(train).history_
    return spread([len(train) / record.seconds / 1e6 for record in history.epochs])


class Race:
    """Contestants that take turns, so that a busy minute of the machine meets all of them.

    Attributes:
        rounds: M ratings/s of each contestant, round by round.
    """

    def __init__(self, contestants: dict[str, Callable[[], float]], repeats: int) -> None:
        self.rounds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(repeats):
            for name, run in contestants.items():
                self.rounds[name].append(run())

    def speed(self, name: str) -> dict[str, float]:
        """Spread of the M ratings/s of a contestant."""
        return spread(self.rounds[name])

    def ratio(self, name: str, *peers: str) -> dict[str, float]:
        """Spread of the ratio to the fastest of the peers, round by round."""
        fastest = [max(of_round) for of_round in zip(*(self.rounds[peer] for peer in peers), strict=True)]
        return spread([speed / peer for speed, peer in zip(self.rounds[name], fastest, strict=True)])


def _counts(idx: Tensor, n: int) -> Tensor:
    return torch.bincount(idx, minlength=n)


def table_loss(
    model: MFDMCModel, weights: LossWeights, counts: Callable[[Tensor, int], Tensor] = _counts
) -> Callable[..., Tensor]:
    """The loss in the form that torch runs fastest: whole tables first, then gathers; static shapes to compile.

    `counts` gives how often each of n rows occurs.
    """
    sides = (model.user.tensors(), model.item.tensors())

    def total(user_idx: Tensor, item_idx: Tensor, ratings: Tensor) -> Tensor:
        gathered, loss = [], sides[0].centers.new_zeros(())
        prediction = torch.full_like(ratings, model.global_mean)
        for side, idx in zip(sides, (user_idx, item_idx), strict=True):
            log_w = reference.log_assignment_weights(side.assignment_logits, side.n_clusters)
            per_view = reference.view_embeddings(log_w.exp(), side.centers, side.n_clusters)
            z = reference.combine_views(per_view, model.config.combine)
            share = counts(idx, len(z)).to(z.dtype) / len(ratings)
            assert side.bias is not None
            gathered.append(z.index_select(0, idx))
            prediction = prediction + side.bias.index_select(0, idx)
            proximity = reference.proximity(log_w.exp(), side.centers, per_view, side.n_clusters)
            entropy = reference.normalized_entropy(log_w, side.n_clusters).mean(0)
            loss = loss + weights.spread * reference.spread(side.centers, side.n_clusters, model.spread_margin)
            loss = loss + share @ (
                weights.proximity * proximity
                + weights.entropy * entropy
                + weights.l2 * z.square().sum(1)
                + weights.bias_l2 * side.bias.square()
            )
        prediction = prediction + (gathered[0] * gathered[1]).sum(1)
        return loss + (prediction - ratings).square().mean()

    return total


def make_model(dataset: RatingsDataset, config: MFDMCConfig) -> MFDMCModel:
    """An untrained model for the ratings."""
    return MFDMCModel(len(dataset.users), len(dataset.items), config, float(dataset.ratings.mean(dtype=np.float64)))


def torch_speed(
    dataset: RatingsDataset,
    config: MFDMCConfig,
    threads: int,
    seconds: float,
    form: Callable[[MFDMCModel, LossWeights], Callable[..., Tensor]] = table_loss,
    compiled: bool = False,
) -> float:
    """M ratings/s of steps (loss, backward, Adam) in torch with a given number of threads, for about `seconds`."""
    torch.set_num_threads(threads)
    model = make_model(dataset, config)
    loss = form(model, model.loss_weights(30))
    if compiled:
        torch.compiler.reset()  # or earlier shapes use up the number of compilations that are allowed
        loss = torch.compile(loss, dynamic=False)
    optimizer = make_optimizer(model)
    batches = list(itertools.islice(BatchIterator(dataset, config.batch_size, 0).epoch(1), 25))
    size = min(len(b.ratings) for b in batches)
    batches = [type(b)(*(t[:size] for t in b)) for b in batches]  # one shape, so that nothing is compiled twice

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(*batches[number % len(batches)]).backward()
        optimizer.step()

    for number in range(3):
        step(number)
    start, number = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or number < 3:
        step(number)
        number += 1
    return number * size / (time.perf_counter() - start) / 1e6


class LibMF:
    """LIBMF's mf-train on the training ratings, written once as its text."""

    def __init__(self, program: str, folder: Path, train: Ratings, test: Ratings, threads: int) -> None:
        self._program, self._folder, self._threads, self._n = program, folder, threads, len(train)
        for name, ratings in (("train", train), ("test", test)):
            table = np.column_stack([ratings.users, ratings.items, ratings.ratings])
            np.savetxt(folder / name, table, fmt="%g")

    def _run(self, k: int, iterations: int, *extra: str) -> tuple[float, str]:
        settings = {"-k": k, "-l2": 0.08 if k > 32 else 0.1, "-r": 0.1, "-t": iterations, "-s": self._threads}
        options = [str(part) for option in settings.items() for part in option]
        start = time.perf_counter()
        ran = subprocess.run(
            [self._program, *options, *extra, "train", "model"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return time.perf_counter() - start, ran.stdout

    def speed(self, k: int) -> float:
        """M ratings/s of training alone: the difference of two iteration counts."""
        few, many = (self._run(k, count, "--quiet")[0] for count in LIBMF_ITERATIONS)
        return self._n * (LIBMF_ITERATIONS[1] - LIBMF_ITERATIONS[0]) / (many - few) / 1e6

    def curve(self, k: int, speed: float) -> list[dict[str, float]]:
        """Test RMSE after each iteration, and seconds at a speed in M ratings/s."""
        _, log = self._run(k, LIBMF_ITERATIONS[1], "-p", "test")
        rmses = [float(line.split()[2]) for line in log.splitlines() if line.strip()[:1].isdigit()]
        return [
            {"epochs": n, "seconds": n * self._n / speed / 1e6, "rmse": rmse} for n, rmse in enumerate(rmses, start=1)
        ]


def seconds_to(curve: list[dict[str, float]]) -> dict[str, float | None]:
    """Fewest seconds in a curve until each of the test RMSEs, None where it never comes."""
    return {
        f"{quality:.4f}": min((p["seconds"] for p in curve if p["rmse"] <= quality), default=None)
        for quality in QUALITIES
    }


def surprise_speed(train: Ratings, n_factors: int, epochs: int, test: Ratings | None = None) -> dict[str, Any]:
    """Seconds and M ratings/s of Surprise's SVD, one thread as always, and its test RMSE."""
    try:
        import pandas as pd
        from surprise import SVD, Dataset, Reader
    except ImportError as error:
        return {"skipped": f"Surprise is not installed ({error})"}
    frame = pd.DataFrame({"user": train.users, "item": train.items, "rating": train.ratings})
    full = Dataset.load_from_df(frame, Reader(rating_scale=train.scale)).build_full_trainset()
    start = time.perf_counter()
    svd = SVD(n_factors=n_factors, n_epochs=epochs, random_state=0).fit(full)
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "epochs": epochs, "m_ratings_per_s": len(train) * epochs / seconds / 1e6}
    if test is not None:
        rows = zip(test.users.tolist(), test.items.tolist(), test.ratings.tolist(), strict=True)
        result["rmse"] = math.sqrt(statistics.fmean((p.est - p.r_ui) ** 2 for p in svd.test(list(rows))))
    return result


def cornac_speed(train: Ratings, test: Ratings, k: int, threads: int, epochs: tuple[int, int]) -> dict[str, Any]:
    """M ratings/s of Cornac's MF by the difference of two epoch counts, and the test RMSE of the longer run."""
    try:
        import cornac
    except ImportError as error:
        return {"skipped": f"Cornac is not installed ({error})"}
    triples = zip(train.users.tolist(), train.items.tolist(), train.ratings.tolist(), strict=True)
    data = cornac.data.Dataset.from_uir(triples)
    times = []
    for n in epochs:
        start = time.perf_counter()
        model = cornac.models.MF(k=k, max_iter=n, num_threads=threads, seed=0).fit(data)
        times.append(time.perf_counter() - start)
    known = [
        (data.uid_map[u], data.iid_map[i], r)
        for u, i, r in zip(test.users.tolist(), test.items.tolist(), test.ratings.tolist(), strict=True)
        if u in data.uid_map and i in data.iid_map
    ]
    low, high = train.scale
    errors = ((min(max(float(model.score(u, i)), low), high) - r) ** 2 for u, i, r in known)
    return {
        "m_ratings_per_s": len(train) * (epochs[1] - epochs[0]) / (times[1] - times[0]) / 1e6,
        "epochs": epochs[1],
        "rmse": math.sqrt(statistics.fmean(errors)),
        "test_ratings_without_user_or_item": len(test) - len(known),
    }


def check_against_oracle(dataset: RatingsDataset) -> None:
    """Refuse to time a wrong engine: first epoch's mean loss within 1e-4 of the reference's."""
    losses = []
    for backend in ("cpu", "reference"):
        model = make_model(dataset, MFDMCConfig(backend=backend))
        losses.append(make_epochs(model, BatchIterator(dataset, None, 0), backend).run(1, [])["total"])
    if abs(losses[0] - losses[1]) > 1e-4 * losses[1]:
        raise SystemExit(f"the engine's loss {losses[0]} is not the reference's {losses[1]}")


def pruning_speed(dataset: RatingsDataset, epochs: int) -> dict[str, float]:
    """Seconds per epoch before and after half of the clusters of every view are removed."""
    model = make_model(dataset, MFDMCConfig(epochs=2 * epochs))
    runner = make_epochs(model, BatchIterator(dataset, None, 0), "cpu")
    medians = []
    for first in (1, epochs + 1):
        times = []
        for epoch in range(first, first + epochs):
            start = time.perf_counter()
            runner.run(epoch, [])
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
        for side in model.prunable_sides().values():
            remove_clusters(side, [range(k // 2) for k in side.n_clusters], runner.optimizer)
    return {"before_seconds": medians[0], "after_seconds": medians[1], "ratio": medians[1] / medians[0]}


def ml_100k_beside_surprise(repeats: int) -> dict[str, Any]:
    """Seconds of a default fit of MFDMC (60 epochs) and of Surprise's SVD (20 epochs) on u1.base, in turn."""
    folder = data_folder()
    if folder is None:
        return {"skipped": "the rating datasets are not here"}
    train = read_ratings(folder / "ml-100k" / "u1.base")
    own, peer = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        MFDMC().fit(train)
        own.append(time.perf_counter() - start)
        result = surprise_speed(train, 100, 20)
        if "skipped" in result:
            return result
        peer.append(result["seconds"])
    ratio = statistics.median(a / b for a, b in zip(own, peer, strict=True))
    return {"mfdmc_seconds": spread(own), "surprise_seconds": spread(peer), "ratio": ratio}


def in_epochs(kind: type[MFDMC] | type[FunkMF], epochs: int, **settings: Any) -> RatingEstimator:
    """Default settings for another number of epochs: rates in inverse proportion, ramps and pruning moved along."""
    usual = with_rates(kind()._config())
    values = usual.to_dict()
    names = ["learning_rate", "learning_rate_biases", *(["learning_rate_centers"] if kind is MFDMC else [])]
    rates = {name: values[name] * usual.epochs / epochs for name in names}
    if kind is MFDMC:
        for weight in ("weight_proximity", "weight_entropy"):
            settings[weight] = str(values[weight]).rpartition(":")[0] + f":{max(1, epochs // 2)}"
        settings["prune_start"] = max(1, 2 * epochs // 3)
    return kind(epochs=epochs, **rates, **settings)


def time_to_quality(kind: type[MFDMC] | type[FunkMF], train: Ratings, test: Ratings, **settings: Any) -> dict[str, Any]:
    """Seconds and test RMSE of whole fits of ever more epochs, each with its learning-rate schedule to the end."""
    curve = []
    for epochs in (6, 8, 10, 15, 20, 30, 40, 60):
        start = time.perf_counter()
        fitted = in_epochs(kind, epochs, **settings).fit(train)
        seconds = time.perf_counter() - start
        curve.append({"epochs": epochs, "seconds": seconds, "rmse": fold_result("test", fitted, test).rmse})
    return {"curve": curve, "seconds_to_rmse": seconds_to(curve)}


def _unpruned(shape: dict[str, Any], epochs: int) -> MFDMC:
    return MFDMC(**shape, epochs=epochs, prune=False)


def _funkmf(n_factors: int, epochs: int) -> FunkMF:
    return FunkMF(n_factors=n_factors, epochs=epochs)


def shapes_beside_peers(
    train: Ratings, dataset: RatingsDataset, threads: int, repeats: int, quick: bool, peer: LibMF | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole fits of each shape beside torch eager, those of the main shape and of FunkMF beside LIBMF as well."""
    rows: dict[str, Any] = {}
    funkmf: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        if quick and name != MAIN_SHAPE:
            continue
        # no pruning: every epoch does the same work
        make = partial(_unpruned, shape)
        contestants: dict[str, Callable[[], float]] = {"fit": partial(fit_speed, make, train, MFDMC().epochs)}
        eager = []
        for n in sorted({1, threads}):
            eager.append(f"eager, {n} threads")
            contestants[eager[-1]] = partial(torch_speed, dataset, MFDMCConfig(**shape), n, 0.5)
        if name == MAIN_SHAPE:
            contestants["funkmf"] = partial(fit_speed, partial(_funkmf, 32), train, FunkMF().epochs)
            if peer:
                contestants["libmf"] = partial(peer.speed, 32)
        results = Race(contestants, repeats)
        rows[name] = {
            "fit_m_ratings_per_s": results.speed("fit"),
            "epoch_m_ratings_per_s": epoch_speed(make, train, MFDMC().epochs),
            "eager_m_ratings_per_s": {n: results.speed(n) for n in eager},
            "ratio_vs_eager": results.ratio("fit", *eager),
            "rounds": results.rounds,
        }
        if name == MAIN_SHAPE:
            funkmf["fit_m_ratings_per_s"] = results.speed("funkmf")
            if peer:
                rows[name]["libmf_k32_m_ratings_per_s"] = results.speed("libmf")
                rows[name]["ratio_vs_libmf"] = results.ratio("fit", "libmf")
                funkmf["ratio_vs_libmf"] = results.ratio("funkmf", "libmf")
    return rows, funkmf


def other_measurements(
    train: Ratings, test: Ratings, dataset: RatingsDataset, threads: int, repeats: int, peer: LibMF | None
) -> dict[str, Any]:
    """What the quick mode leaves out."""
    result: dict[str, Any] = {
        "surprise_k32": surprise_speed(train, 32, 20, test),
        "cornac_k32": cornac_speed(train, test, 32, threads, (5, 25)),
        "half_pruned": pruning_speed(dataset, 20),
        "ml_100k": ml_100k_beside_surprise(repeats),
    }

    def fit_with(n_threads: int) -> float:
        torch.set_num_threads(n_threads)
        return fit_speed(partial(_unpruned, {}), train, MFDMC().epochs)

    by_threads = Race({"one": lambda: fit_with(1), "all": lambda: fit_with(threads)}, repeats)
    result["one_thread"] = {
        "fit_m_ratings_per_s": by_threads.speed("one"),
        "ratio_of_all_threads": by_threads.ratio("all", "one"),
        "rounds": by_threads.rounds,
    }
    quality = {"MFDMC": time_to_quality(MFDMC, train, test)}
    quality |= {f"FunkMF k={k}": time_to_quality(FunkMF, train, test, n_factors=k) for k in (32, 64, 128)}
    if peer:
        for k in (32, 64):
            speed = statistics.median(peer.speed(k) for _ in range(repeats))
            curve = peer.curve(k, speed)
            quality[f"LIBMF k={k}"] = {"curve": curve, "seconds_to_rmse": seconds_to(curve)}
    result["time_to_quality"] = quality
    return result


def main() -> None:
    """Run all contestants, print ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the main shape only, in under 50 seconds")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    start = time.perf_counter()
    threads, repeats = args.threads, 3 if args.quick else 5
    train, test, source = ml_1m()
    dataset = RatingsDataset.from_ratings(train)
    torch.set_num_threads(threads)
    check_against_oracle(dataset)

    program = os.environ.get("LIBMF_TRAIN") or shutil.which("mf-train")
    details: dict[str, Any] = {"data": source, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        peer = LibMF(program, Path(folder), train, test, threads) if program else None
        if peer is None:
            details["libmf"] = "skipped: mf-train is not on PATH and LIBMF_TRAIN does not name it"
            print(details["libmf"])
        rows, funkmf = shapes_beside_peers(train, dataset, threads, repeats, args.quick, peer)
        details |= {"shapes": rows, "funkmf_k32": funkmf}
        if not args.quick:
            details |= other_measurements(train, test, dataset, threads, repeats, peer)
    # compiling last: what it starts stays in the process
    for name, row in rows.items():
        row["compiled_m_ratings_per_s"] = {
            n: torch_speed(dataset, MFDMCConfig(**SHAPES[name]), n, 1.0, compiled=True) for n in sorted({1, threads})
        }
        fastest = max(row["compiled_m_ratings_per_s"].values())
        row["ratio_vs_compiled"] = row["fit_m_ratings_per_s"]["median"] / fastest
    main_row = rows[MAIN_SHAPE]
    speed, funkmf_speed = (r["fit_m_ratings_per_s"]["median"] for r in (main_row, funkmf))
    summary = {
        "m_ratings_per_s": speed,
        "ratio_vs_eager": main_row["ratio_vs_eager"]["median"],
        "ratio_vs_compiled": main_row["ratio_vs_compiled"],
        "ratio_vs_libmf": main_row["ratio_vs_libmf"]["median"] if peer else None,
        "funkmf_m_ratings_per_s": funkmf_speed,
        "funkmf_ratio_vs_libmf": funkmf["ratio_vs_libmf"]["median"] if peer else None,
        "seconds_per_epoch": len(train) / speed / 1e6,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    summary["seconds_total"] = time.perf_counter() - start
    for name, value in summary.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")
    if args.json:
        command = f"python -m benchmarks.cpu_training{' --quick' * args.quick} --threads {threads}"
        write_json(args.json, {**provenance(command), **summary, **details})


if __name__ == "__main__":
    main()
