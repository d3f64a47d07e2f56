"""How the default settings were chosen: a seeded search on a validation split of MovieLens-100k's u1.base alone.

    python -m benchmarks.tune_defaults --model mfdmc  [--trials 200] [--jobs 2]
    python -m benchmarks.tune_defaults --model funkmf [--trials 200] [--jobs 2]
    python -m benchmarks.tune_defaults --model MODEL --optimizer adagrad [--backend reference]

72,000 ratings train, 8,000 validate; the test files u1.test … u5.test are never read. Optuna's TPE sampler proposes
settings (search spaces below), each trained with two seeds and judged by the mean at their last epoch; the best five
are trained again with three other seeds, and the lowest mean wins. For MFDMC the objective also wants clusters to be
pruned, because a default that never prunes would hide half of the method: up to `PRUNING_WORTH` RMSE is added where
fewer than `PRUNED_WANTED` of the 160 clusters go.

With `--optimizer adagrad` only the learning rates are sought, rounded to two digits, beside the defaults of everything
else, and the default settings with Adam are trained with the same three seeds for comparison.

Needs optuna (`pip install -e '.[benchmarks]'`). Writes benchmarks/results/tune_defaults_MODEL[_adagrad].json.
"""

from __future__ import annotations

import argparse
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import optuna
import torch

from benchmarks.results_file import RESULTS, provenance, write_json
from mfdmc_fast.data import Ratings, holdout, read_ratings
from mfdmc_fast.estimator import MFDMC, FunkMF
from mfdmc_fast.evaluate import fold_result
from mfdmc_fast.testing import data_folder

SPLIT_SEED = 7
SEARCH_SEEDS = (0, 1)
PRUNED_WANTED = 16
PRUNING_WORTH = 0.003
# AdaGrad's step falls as 1 / sqrt(steps), so its rates are some ten times Adam's
ADAGRAD_RATES: dict[str, dict[str, tuple[float, float]]] = {
    "mfdmc": {
        "learning_rate": (0.05, 2.0),
        "learning_rate_centers": (0.01, 0.5),
        "learning_rate_biases": (0.02, 0.5),
    },
    "funkmf": {"learning_rate": (0.01, 0.5), "learning_rate_biases": (0.03, 1.0)},
}


def propose(trial: optuna.Trial, model: str, optimizer: str) -> dict[str, Any]:
    """The search space; what is not named keeps its default."""
    if optimizer == "adagrad":
        rates = {name: trial.suggest_float(name, *limits, log=True) for name, limits in ADAGRAD_RATES[model].items()}
        return {"optimizer": optimizer, **{name: float(f"{rate:.2g}") for name, rate in rates.items()}}
    if model == "funkmf":
        return {
            "n_factors": trial.suggest_categorical("n_factors", [16, 32, 64, 128]),
            "factor_scale": trial.suggest_float("factor_scale", 0.001, 0.3, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 0.0005, 0.03, log=True),
            "learning_rate_biases": trial.suggest_float("learning_rate_biases", 0.003, 0.06, log=True),
            # below this, what is best here relies on stopping early, and underfits larger data
            "weight_l2": trial.suggest_float("weight_l2", 0.08, 0.18),
            "weight_bias_l2": trial.suggest_float("weight_bias_l2", 0.001, 0.05, log=True),
        }
    return {
        "center_scale": trial.suggest_float("center_scale", 0.6, 1.4),
        "logit_scale": trial.suggest_float("logit_scale", 0.05, 1.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 0.015, 0.2, log=True),
        "learning_rate_centers": trial.suggest_float("learning_rate_centers", 0.003, 0.04, log=True),
        "learning_rate_biases": trial.suggest_float("learning_rate_biases", 0.004, 0.04, log=True),
        "spread_margin": trial.suggest_float("spread_margin", 0.2, 1.5),
        "weight_spread": trial.suggest_float("weight_spread", 0.01, 0.2, log=True),
        # both come in over the first half of the epochs, as in the trials before
        "weight_proximity": f"0:{trial.suggest_float('weight_proximity', 0.003, 0.05, log=True):.4f}:30",
        "weight_entropy": f"0:{trial.suggest_float('weight_entropy', 0.01, 0.3, log=True):.4f}:30",
        "weight_l2": trial.suggest_float("weight_l2", 0.08, 0.18),
        "weight_bias_l2": trial.suggest_float("weight_bias_l2", 0.01, 0.05, log=True),
    }


def validation_split() -> tuple[Ratings, Ratings]:
    """72,000 and 8,000 ratings of u1.base."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("the rating datasets are not here; point MFDMC_DATA to the folder that holds ml-100k")
    _, train, validation = holdout(read_ratings(folder / "ml-100k" / "u1.base"), 0.1, SPLIT_SEED)
    return train, validation


def run(model: str, backend: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once on the training part and evaluate the last epoch on the validation part."""
    torch.set_num_threads(1)
    train, validation = validation_split()
    estimator = (MFDMC if model == "mfdmc" else FunkMF)(**settings, seed=seed, backend=backend)
    result = fold_result("validation", estimator.fit(train), validation)
    lacking = max(0, PRUNED_WANTED - result.pruned) / PRUNED_WANTED if model == "mfdmc" else 0.0
    entropy = estimator.history_.epochs[-1].loss["entropy"] / 2
    return {
        "rmse": result.rmse,
        "pruned": result.pruned,
        "mean_entropy": entropy,
        "objective": result.rmse + PRUNING_WORTH * lacking,
    }


def main() -> None:
    """Search, run the best again with other seeds, and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mfdmc", "funkmf"], required=True)
    parser.add_argument("--optimizer", choices=["adam", "adagrad"], default="adam", help="adagrad: only its rates")
    parser.add_argument("--backend", default="auto", help="backend that trains")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trials at a time, one thread each")
    args = parser.parse_args()
    command = f"python -m benchmarks.tune_defaults --model {args.model} --trials {args.trials} --jobs {args.jobs}"
    if args.optimizer != "adam":
        command += f" --optimizer {args.optimizer}"
    if args.backend != "auto":
        command += f" --backend {args.backend}"

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=20))
    trials: list[dict[str, Any]] = []
    fit_once = partial(run, args.model, args.backend)
    with ProcessPoolExecutor(args.jobs) as pool:
        while len(trials) < args.trials:
            asked = [study.ask() for _ in range(min(args.jobs, args.trials - len(trials)))]
            proposed = [propose(trial, args.model, args.optimizer) for trial in asked]
            first, second = (pool.map(fit_once, proposed, [seed] * len(asked)) for seed in SEARCH_SEEDS)
            for trial, settings, *results in zip(asked, proposed, first, second, strict=True):
                objective = statistics.fmean(r["objective"] for r in results)
                study.tell(trial, objective)
                trials.append({"settings": settings, "objective": objective, "search_seeds": results})
                print(f"{len(trials)}/{args.trials} objective {objective:.4f} {settings}", flush=True)
        finalists = sorted(trials, key=lambda t: float(t["objective"]))[:5]
        seeds = [2, 3, 4]
        for finalist in finalists:
            finalist["seeds"] = list(pool.map(fit_once, [finalist["settings"]] * 3, seeds))
            finalist["mean_objective"] = statistics.fmean(r["objective"] for r in finalist["seeds"])
            print(f"finalist {finalist['mean_objective']:.4f} {finalist['settings']}", flush=True)
        beside = {"adam_defaults": list(pool.map(fit_once, [{}] * 3, seeds))} if args.optimizer == "adagrad" else {}
    best = min(finalists, key=lambda t: float(t["mean_objective"]))
    name = args.model + ("_adagrad" if args.optimizer == "adagrad" else "")
    write_json(
        RESULTS / f"tune_defaults_{name}.json",
        {**provenance(command), "best": best, **beside, "finalists": finalists, "trials": trials},
    )
    print(f"best: {best['settings']}")


if __name__ == "__main__":
    main()
