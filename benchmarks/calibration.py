"""Is `BayesianMF.predict(..., return_std=True)` honest? Coverage of its intervals on MovieLens-100k, u1 to u5.

    python -m benchmarks.calibration [--json FILE]

For each fold: the share of test ratings inside prediction ± z * std for nominal 50, 80, 90 and 95 % of a normal
distribution; the standard deviation of (rating - prediction) / std, which is 1 where std is right on average; the same
coverage in five groups of equal size from the smallest to the largest std, with each group's mean std beside its RMSE;
and the mean negative log likelihood, beside that of the same predictions with their mean std for all. Predictions are
clipped to the rating scale.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results_file import provenance, write_json
from benchmarks.suite.datasets import DATASETS
from mfdmc_fast.estimator import BayesianMF

LEVELS = (0.5, 0.8, 0.9, 0.95)
GROUPS = 5
Floats = npt.NDArray[np.float64]


def coverage(errors: Floats, deviations: Floats) -> dict[str, float]:
    """Share of errors within the interval of each nominal level."""
    quantiles = {level: statistics.NormalDist().inv_cdf((1 + level) / 2) for level in LEVELS}
    return {f"{level:g}": float((np.abs(errors) <= z * deviations).mean()) for level, z in quantiles.items()}


def negative_log_likelihood(errors: Floats, deviations: Floats) -> float:
    """Mean over ratings of -ln of the normal density."""
    return float((np.log(deviations * np.sqrt(2 * np.pi)) + (errors / deviations) ** 2 / 2).mean())


def calibration(errors: Floats, deviations: Floats) -> dict[str, Any]:
    """All measures of one fold.

    Args:
        errors: [N] ratings minus predictions.
        deviations: [N] predictive standard deviations.
    """
    order = np.argsort(deviations, kind="stable")
    groups = [
        {
            "mean_std": float(deviations[rows].mean()),
            "rmse": float(np.sqrt((errors[rows] ** 2).mean())),
            "coverage": coverage(errors[rows], deviations[rows]),
        }
        for rows in np.array_split(order, GROUPS)
    ]
    constant = np.full_like(deviations, deviations.mean())
    return {
        "coverage": coverage(errors, deviations),
        "std_of_standardized_errors": float((errors / deviations).std()),
        "nll": negative_log_likelihood(errors, deviations),
        "nll_of_one_std": negative_log_likelihood(errors, constant),
        "by_std": groups,
    }


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    dataset = DATASETS["ml-100k"]
    if not dataset.is_there():
        raise SystemExit("MovieLens-100k is not here; point MFDMC_DATA to the folder that holds ml-100k")
    rows = []
    for fold in range(dataset.folds):
        split = dataset.split(fold)
        model = BayesianMF().fit(split.train, rating_scale=dataset.scale)
        predictions, deviations = model.predict(split.test.users, split.test.items, return_std=True)
        known = np.isfinite(deviations)
        errors = (split.test.ratings - predictions)[known].astype(np.float64)
        rows.append({"fold": split.name, **calibration(errors, deviations[known].astype(np.float64))})
        row = rows[-1]
        shares = ", ".join(f"{share:.3f} of {level}" for level, share in row["coverage"].items())
        print(
            f"{split.name}: coverage {shares}; standardized errors {row['std_of_standardized_errors']:.3f};"
            f" NLL {row['nll']:.4f}, with one std {row['nll_of_one_std']:.4f}"
        )
        for group in row["by_std"]:
            print(
                f"    std {group['mean_std']:.3f} RMSE {group['rmse']:.3f} 90 % interval {group['coverage']['0.9']:.3f}"
            )
    if args.json is not None:
        write_json(args.json, {**provenance("python -m benchmarks.calibration"), "folds": rows})


if __name__ == "__main__":
    main()
