"""Life after training, measured: fold-in and partial_fit beside a refit, their time, recommend, and a FAISS index.

    python -m benchmarks.fold_in [--rounds 3] [--quick] [--json FILE]

- *users*, MovieLens-1M: a tenth of the users is held out, and 20 % of their ratings are the test. A model is trained on
  the others and folds them in from 80 %, 20 %, 10 % and 5 % of all their ratings; beside it a model that was trained
  with the same ratings, and the folded-in users' biases alone. Every round holds out other users. Models with a teacher
  are trained again for 80 % only.
- *speed*: 10,000 users, drawn from the known ones with 80 % of their ratings and new ids, into a model of all of
  MovieLens-1M: the whole call of `fold_in`, ids and all. `recommend` for all users, 10 items each, seen ones left out.
  FAISS: share of the exact 10 best that an index finds.
- *time*, MovieLens-100k and amazon-hin: a model of the first 90 % of the ratings; half of the last 10 %, drawn at
  random, is given to it and the other half is the test.

Times are medians of five. The prior, the steps and the learning rate of fold-in were chosen on held-out users of
another seed, and on the time splits. `--quick`: one round on generated ratings.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results_file import provenance, write_json
from mfdmc_fast.data import Ratings, make_planted_ratings, read_ratings
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator
from mfdmc_fast.export import faiss_index, recall, vectors
from mfdmc_fast.metrics import rmse
from mfdmc_fast.testing import data_folder

SHARES = (0.8, 0.2, 0.1, 0.05)
SCALE = (1.0, 5.0)
FIRST_SEED = 100  # of the rounds; settings were looked for with seed 0
MODELS: dict[str, Callable[[], RatingEstimator]] = {
    "MFDMC": lambda: MFDMC(seed=1),
    "FunkMF": lambda: FunkMF(seed=1),
    "MFDMC accurate": lambda: MFDMC.preset("accurate", seed=1),
}


def held_out_users(ratings: Ratings, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """A mask [N] of the ratings of a tenth of the users, and for all ratings the place [N] among their user's in random
    order, in [0, 1): the first x of a user's ratings are those with a place below x.
    """
    generator = np.random.default_rng(seed)
    ids, own = np.unique(ratings.users, return_inverse=True)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[generator.permutation(len(ids))[: len(ids) // 10]] = True
    order = np.lexsort((generator.random(len(own)), own))
    counts = np.bincount(own)
    first = np.cumsum(counts) - counts
    place = np.empty(len(own))
    place[order] = (np.arange(len(own)) - first[own[order]]) / counts[own[order]]
    return chosen[own], place


def bias_only(model: RatingEstimator, given: Ratings, test: Ratings) -> npt.NDArray[np.float32]:
    """Predictions for new users by global mean, item bias and the user's mean residual, shrunk as the biases of trained
    users suggest.
    """
    bias = model.model_.bias("user")
    noise = model.history_.train_rmse
    assert bias is not None
    assert noise is not None
    residuals = given.ratings - model.predict(given.users, given.items)
    ids, own = np.unique(given.users, return_inverse=True)
    shrinkage = noise**2 / float(bias.var())
    biases = np.bincount(own, residuals) / (np.bincount(own) + shrinkage)
    at = np.minimum(np.searchsorted(ids, test.users), len(ids) - 1)
    shifted = model.predict(test.users, test.items) + np.where(ids[at] == test.users, biases[at], 0.0)
    return shifted.clip(*SCALE).astype(np.float32)


def measure_users(ratings: Ratings, rounds: int, models: list[str]) -> list[dict[str, Any]]:
    """RMSE of fold-in, refit and biases for every model, share of the ratings and round."""
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + rounds):
        held, place = held_out_users(ratings, seed)
        others, test = ratings.take(~held), ratings.take(held & (place >= 0.8))
        for name in models:
            base = MODELS[name]().fit(others, rating_scale=SCALE)
            for share in SHARES:
                given = ratings.take(held & (place < share))
                row: dict[str, Any] = {"model": name, "seed": seed, "share": share, "ratings_given": len(given)}
                row["fold_in"] = copy.deepcopy(base).fold_in(given).evaluate(test)["rmse"]
                row["bias_only"] = rmse(bias_only(base, given, test), test.ratings)
                row["refit"] = None
                if share == SHARES[0] or base.model_.config.to_dict().get("teacher") is None:
                    both = ratings.take(~held | (place < share))
                    row["refit"] = MODELS[name]().fit(both, rating_scale=SCALE).evaluate(test)["rmse"]
                rows.append(row)
                refit = "" if row["refit"] is None else f"{row['refit']:.4f}"
                print(
                    f"{name:15} seed {seed} {share:4.0%}  fold-in {row['fold_in']:.4f}  refit {refit:6}"
                    f"  biases {row['bias_only']:.4f}",
                    flush=True,
                )
    return rows


def many_users(ratings: Ratings, n: int, seed: int = 0) -> Ratings:
    """80 % of the ratings of n users drawn with replacement, each with an id of its own beyond the known ones."""
    generator = np.random.default_rng(seed)
    order = np.argsort(ratings.users, kind="stable")
    _, first, counts = np.unique(ratings.users[order], return_index=True, return_counts=True)
    drawn = generator.integers(len(counts), size=n)
    rows = np.concatenate([order[first[u] : first[u] + counts[u]] for u in drawn])
    users = np.repeat(np.arange(n) + int(ratings.users.max()) + 1, counts[drawn])
    kept = generator.random(len(rows)) < 0.8
    return Ratings(users[kept], ratings.items[rows[kept]], ratings.ratings[rows[kept]], distinct=True)


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_speed(ratings: Ratings, n_users: int) -> dict[str, Any]:
    """Seconds of fold-in and of recommend, and what FAISS finds."""
    model = MFDMC(seed=1).fit(ratings, rating_scale=SCALE)
    new = many_users(ratings, n_users)
    copies = [copy.deepcopy(model) for _ in range(5)]
    found: dict[str, Any] = {
        "users_folded_in": n_users,
        "their_ratings": len(new),
        "fold_in_seconds": seconds_of(lambda: copies.pop().fold_in(new)),
        "users_recommended_to": len(model.users_),
        "recommend_seconds": seconds_of(lambda: model.recommend(model.users_.ids, 10)),
        "faiss_recall_at_10": None,
    }
    found["microseconds_per_user"] = 1e6 * found["fold_in_seconds"] / n_users
    exported = vectors(model)
    try:
        found["faiss_recall_at_10"] = {
            kind: recall(faiss_index(exported.items, kind), exported, 10) for kind in ("flat", "hnsw")
        }
    except ConfigError as error:
        print(error)
    print(found, flush=True)
    return found


def measure_time(name: str, ratings: Ratings, models: list[str]) -> list[dict[str, Any]]:
    """RMSE on later ratings, of the users that the first model knows and of the others, by what is done."""
    assert ratings.timestamps is not None
    order = np.argsort(ratings.timestamps, kind="stable")
    later = order[int(0.9 * len(order)) :]
    given_rows = np.random.default_rng(FIRST_SEED).random(len(later)) < 0.5
    old = ratings.take(np.sort(order[: int(0.9 * len(order))]))
    given, test = (ratings.take(np.sort(later[chosen])) for chosen in (given_rows, ~given_rows))
    known = np.isin(test.users, old.users)
    unseen = ~np.isin(given.users, old.users) | ~np.isin(given.items, old.items)
    both = ratings.take(np.sort(np.concatenate([order[: len(old)], later[given_rows]])))
    rows = []
    for label in models:
        base = MODELS[label]().fit(old, rating_scale=SCALE)
        updated: dict[str, Callable[[], RatingEstimator]] = {
            "nothing": lambda base=base: base,
            "fold_in": lambda base=base: copy.deepcopy(base).fold_in(given.take(unseen)),
            "partial_fit": lambda base=base: copy.deepcopy(base).partial_fit(given),
            "refit": lambda label=label: MODELS[label]().fit(both, rating_scale=SCALE),
        }
        for what, update in updated.items():
            predictions = update().predict(test.users, test.items)
            row = {"dataset": name, "model": label, "what": what, "rmse": rmse(predictions, test.ratings)}
            for group, chosen in (("known_users", known), ("new_users", ~known)):
                row[group] = rmse(predictions[chosen], test.ratings[chosen]) if chosen.any() else None
            rows.append(row)
            print(f"{name:12} {label:8} {what:12} {row['rmse']:.4f}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the rounds."""
    found = []
    for name, share in dict.fromkeys((row["model"], row["share"]) for row in rows):
        own = [row for row in rows if (row["model"], row["share"]) == (name, share)]
        mean: dict[str, Any] = {"model": name, "share": share, "rounds": len(own)}
        for column in ("fold_in", "refit", "bias_only"):
            values = [row[column] for row in own if row[column] is not None]
            mean[column] = statistics.fmean(values) if values else None
        found.append(mean)
    return found


def _with_times(ratings: Ratings) -> Ratings:
    """Ratings of generated data in a random order of time."""
    times = np.random.default_rng(1).permutation(len(ratings))
    return Ratings(ratings.users, ratings.items, ratings.ratings, timestamps=times)


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round on generated ratings")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    plain = ["MFDMC", "FunkMF"]
    if args.quick:
        planted = make_planted_ratings(300, 200, 12_000, seed=1)
        users = measure_users(planted, 1, plain)
        speed = measure_speed(planted, 1000)
        times = measure_time("planted", _with_times(planted), plain)
    else:
        folder = data_folder()
        if folder is None or not (folder / "ml-1m").is_dir():
            raise SystemExit("the datasets are not here; point MFDMC_DATA to their folder, or use --quick")
        ml_1m = read_ratings(folder / "ml-1m" / "ratings.parquet")
        speed = measure_speed(ml_1m, 10_000)
        users = measure_users(ml_1m, args.rounds, list(MODELS))
        times = []
        for name, path in (("ml-100k", "u.data"), ("amazon-hin", "ratings.parquet")):
            times += measure_time(name, read_ratings(folder / name / path), plain)
    means = summary(users)
    print()
    for row in means:
        refit = "" if row["refit"] is None else f"{row['refit']:.4f} ({row['fold_in'] - row['refit']:+.4f})"
        print(
            f"{row['model']:15} {row['share']:4.0%}  fold-in {row['fold_in']:.4f}  refit {refit:16}"
            f"  biases {row['bias_only']:.4f}"
        )
    if args.json is not None:
        about = provenance(f"python -m benchmarks.fold_in --rounds {args.rounds}" + (" --quick" if args.quick else ""))
        write_json(args.json, {**about, "users": means, "speed": speed, "time": times, "rows": users})


if __name__ == "__main__":
    main()
