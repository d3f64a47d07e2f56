"""MFDMC, FunkMF and Bayesian MF on MovieLens: the README's accuracy table.

    python -m benchmarks.movielens

MovieLens-100k, official folds u1 … u5; MovieLens-1M, the fold column of the dataset copy (fold 1 as test). Last epoch,
no choice on test ratings. Writes benchmarks/results/movielens.json. Takes two to three minutes on two cores.
"""

from __future__ import annotations

from typing import Any

from benchmarks.results_file import RESULTS, provenance, write_json
from mfdmc_fast.data import Split, column_folds, official_folds, read_ratings
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.evaluate import cross_validate
from mfdmc_fast.testing import data_folder

MODELS: dict[str, RatingEstimator] = {
    "FunkMF": FunkMF(),
    "MFDMC": MFDMC(),
    "MFDMC accurate": MFDMC.preset("accurate"),
    "MFDMC balanced": MFDMC.preset("balanced"),
    "MFDMC interpretable": MFDMC.preset("interpretable"),
    "BayesianMF": BayesianMF(),
}


def main() -> None:
    """Run every cell, print it, and write all of them down."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("the rating datasets are not here; point MFDMC_DATA to the folder that holds ml-100k")
    ml_1m = read_ratings(folder / "ml-1m" / "ratings.parquet", keep=("fold",))
    datasets: dict[str, list[Split]] = {
        "ml-100k, u1-u5": official_folds(folder / "ml-100k"),
        "ml-1m, fold 1": column_folds(ml_1m, "fold")[:1],
    }
    rows: list[dict[str, Any]] = []
    for dataset, splits in datasets.items():
        for name, estimator in MODELS.items():
            result = cross_validate(estimator, splits, rating_scale=(1.0, 5.0))
            rows.append({"dataset": dataset, "model": name, **result.to_dict()})
            print(
                f"{dataset:16} {name:16} RMSE {result.mean_rmse:.4f} MAE {result.mean_mae:.4f} {result.seconds:.0f} s"
            )
    write_json(RESULTS / "movielens.json", {**provenance("python -m benchmarks.movielens"), "rows": rows})


if __name__ == "__main__":
    main()
