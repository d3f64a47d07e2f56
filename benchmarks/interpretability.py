"""Do the clusters mean something? Agreement with labels, beside k-means, random assignment and the price in RMSE.

    python -m benchmarks.interpretability [--datasets ml-100k,ml-1m,amazon-hin] [--seeds 3] [--methods A,B] [--quick]

Every model is fitted on the training part of the first fold. Its clusters are compared with labels that no model has
seen: genres and release years of movies, age group, gender and occupation of users, categories and brands of products;
entities with 20 training ratings or more. Labels choose nothing, and neither do test ratings.

Beside the presets of MFDMC stand the same without pruning, MFDMC on raw ratings, k-means on the vectors of FunkMF and
of a Bayesian teacher (its last draw: draws are rotated against each other, so a mean would be nothing), k-means eight
times from one random start each, which has as many clusters as MFDMC, and random assignment. A single view is judged as
it is; several together by `consensus`, k-means on all memberships with as many clusters as the others have. AUC: how
well the memberships of all views predict a label.

In amazon-hin nearly every product is in the first two categories and half of them have brand 0, so that first labels
say little there: its AMI with categories is near 0 for every model.

Writes results/interpretability.json, .md and .png; datasets and, with `--methods`, models that are not run again keep
their figures and the commit of these. `--quick` runs
on generated ratings with planted clusters, fails if these are not found, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.results_file import RESULTS, provenance, write_json
from benchmarks.suite.datasets import DATASETS, SPLIT_SEED
from benchmarks.suite.report import table, write_markdown
from mfdmc_fast.data import Features, Split, holdout, plant_ratings, read_features
from mfdmc_fast.data.blocks import count_rows
from mfdmc_fast.data.labels import LabelBlock
from mfdmc_fast.errors import DataError
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.files import replacing
from mfdmc_fast.interpret import (
    Interpretability,
    k_means_clusters,
    label_tables,
    measure,
    normalised_entropy,
    stability_of,
)
from mfdmc_fast.model import SIDES, SideName
from mfdmc_fast.testing import data_folder

MIN_RATINGS = 20
N_CLUSTERS = 10
N_VIEWS = 8
BASELINE, ACCURATE = "k-means on FunkMF", "MFDMC accurate"
CANDIDATES = ("MFDMC balanced", "MFDMC interpretable")
# what the presets promise
MOST_RMSE, MOST_ENTROPY, LEAST_PRUNED, ALPHA = 0.003, 0.5, 1 / 3, 0.01
Views = list[npt.NDArray[np.floating]]


class Clustering(NamedTuple):
    """What is measured of a fit.

    Attributes:
        views: of each side, V times [n, K_v].
        embeddings: of each side, [n, D], or None.
        rmse: on the test ratings, or None.
        pruned: share of the clusters that pruning removed, or None.
    """

    views: dict[SideName, Views]
    embeddings: dict[SideName, npt.NDArray[np.floating]] | None
    rmse: float | None
    pruned: float | None


@dataclass
class Fits:
    """The fits of one dataset and seed; models that several rows use are fitted once."""

    split: Split
    scale: tuple[float, float]
    seed: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self._done: dict[str, RatingEstimator] = {}

    def fitted(self, estimator: RatingEstimator, name: str) -> RatingEstimator:
        """The estimator, fitted on the training part."""
        if name not in self._done:
            self._done[name] = estimator.fit(self.split.train, rating_scale=self.scale)
        return self._done[name]

    def mfdmc(self, preset: str, **settings: Any) -> Clustering:
        """The clusters of a preset."""
        model = MFDMC.preset(preset, seed=self.seed, **{**self.settings, **settings})
        started = 2 * model.n_views * model.n_clusters
        model = self.fitted(model, f"{preset} {settings}")
        views = {side: model.memberships(side) for side in SIDES}
        left = sum(view.shape[1] for side in SIDES for view in views[side])
        return Clustering(views, self._embeddings(model), self._rmse(model), 1 - left / started)

    def k_means(self, kind: str, n_views: int) -> Clustering:
        """k-means on the vectors of a model: the best of ten starts, or as several views, one start each."""
        model = self.fitted(FunkMF(seed=self.seed) if kind == "FunkMF" else BayesianMF(seed=self.seed), kind)
        vectors = self._embeddings(model)
        views = {}
        for side in SIDES:
            seeds = range(self.seed * N_VIEWS, self.seed * N_VIEWS + n_views)
            starts = 10 if n_views == 1 else 1
            found = [k_means_clusters(vectors[side], N_CLUSTERS, s, starts=starts) for s in seeds]
            views[side] = [np.eye(N_CLUSTERS)[clusters] for clusters in found]
        return Clustering(views, vectors, self._rmse(model), None)

    def random(self) -> Clustering:
        """Clusters that mean nothing."""
        generator = np.random.default_rng(self.seed)
        model = self.fitted(FunkMF(seed=self.seed), "FunkMF")
        sizes: dict[SideName, int] = {"user": len(model.users_), "item": len(model.items_)}
        views = {
            side: [np.eye(N_CLUSTERS)[generator.integers(0, N_CLUSTERS, n)] for _ in range(N_VIEWS)]
            for side, n in sizes.items()
        }
        return Clustering(views, None, None, None)

    def _embeddings(self, model: Any) -> dict[SideName, npt.NDArray[np.floating]]:
        if isinstance(model, BayesianMF):
            draws = {"user": model.model_.user_draws, "item": model.model_.item_draws}
            return {side: draws[side][-1, :, :-1].numpy() for side in SIDES}
        return {side: model.model_.embeddings(side).cpu().numpy() for side in SIDES}

    def _rmse(self, model: Any) -> float:
        return float(model.evaluate(self.split.test)["rmse"])


METHODS: dict[str, Callable[[Fits], Clustering]] = {
    "MFDMC balanced": lambda fits: fits.mfdmc("balanced"),
    "MFDMC interpretable": lambda fits: fits.mfdmc("interpretable"),
    ACCURATE: lambda fits: fits.mfdmc("accurate"),
    "MFDMC balanced not pruned": lambda fits: fits.mfdmc("balanced", prune=False),
    "MFDMC interpretable not pruned": lambda fits: fits.mfdmc("interpretable", prune=False),
    "MFDMC on raw ratings": lambda fits: fits.mfdmc("fast"),
    BASELINE: lambda fits: fits.k_means("FunkMF", 1),
    "k-means on the teacher": lambda fits: fits.k_means("teacher", 1),
    "8 k-means on FunkMF": lambda fits: fits.k_means("FunkMF", N_VIEWS),
    "8 k-means on the teacher": lambda fits: fits.k_means("teacher", N_VIEWS),
    "random": lambda fits: fits.random(),
}


def features_of(dataset: str) -> dict[SideName, Features]:
    """The labels of a dataset's sides, with names."""
    root = data_folder()
    if root is None or not DATASETS[dataset].is_there():
        raise DataError(f"{dataset} is not here; point MFDMC_DATA to the folder that holds it")
    folder = root / dataset
    if dataset == "ml-100k":
        items = _renamed(read_features(folder / "u.item"), {"flags": "genre", "release date year": "year"})
        return {"item": items, "user": read_features(folder / "u.user")}
    if dataset == "ml-1m":
        items = _renamed(read_features(folder / "movies.dat"), {"genres": "genre", "title year": "year"})
        return {"item": items, "user": read_features(folder / "users.dat")}
    if dataset == "amazon-hin":
        blocks = []
        for name in ("category", "brand"):
            pairs = np.loadtxt(folder / f"item_{name}.dat", delimiter=",", dtype=np.int64)
            labels, label_idx = np.unique(pairs[:, 1], return_inverse=True)
            blocks.append(LabelBlock(name, [f"{name} {label}" for label in labels], pairs[:, 0], label_idx))
        n_items = 1 + max(int(block.rows.max()) for block in blocks)
        return {"item": Features(np.arange(n_items), tuple(blocks), source=str(folder))}
    raise DataError(f"no labels are known for {dataset}; choose from ml-100k, ml-1m, amazon-hin")


def _renamed(features: Features, blocks: dict[str, str]) -> Features:
    """The blocks that get a new name, in the order of these."""
    by_name = {block.name: block for block in features.blocks}
    return replace(features, blocks=tuple(by_name[old]._replace(name=name) for old, name in blocks.items()))


def measured(
    fits: Fits, clustering: Clustering, features: dict[SideName, Features], min_ratings: int
) -> dict[str, Any]:
    """All measures of one fit, as plain values without the clusters' own labels and most labels' own AUC."""
    model: Any = fits.fitted(FunkMF(seed=fits.seed), "FunkMF")
    state = model._state()
    counts = {"user": np.diff(state.seen.offsets), "item": count_rows(state.seen.items, len(state.items))}
    vocabularies = {"user": state.users, "item": state.items}
    entropy = {side: float(normalised_entropy(clustering.views[side]).mean()) for side in SIDES}
    row: dict[str, Any] = {
        "rmse": clustering.rmse,
        "pruned": clustering.pruned,
        "entropy": entropy,
        "mean_entropy": statistics.fmean(entropy.values()),
        "sides": {},
    }
    for side, source in features.items():
        tables = label_tables(source, vocabularies[side], counts[side], min_ratings=min_ratings, min_entities=10)
        found: Interpretability = measure(
            side,
            clustering.views[side],
            tables,
            embeddings=None if clustering.embeddings is None else clustering.embeddings[side],
            consensus_clusters=N_CLUSTERS,
            seed=fits.seed,
        )
        plain = found.to_dict()
        for family in plain["families"]:
            del family["clusters"]
            family["auc"] = family["auc"]["memberships"]
        row["sides"][side] = plain
    return _rounded(row)


def _rounded(values: Any) -> Any:
    """Plain values with five decimals, more than any figure here is good for."""
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 5) if isinstance(values, float) else values


def run(
    split: Split,
    scale: tuple[float, float],
    features: dict[SideName, Features],
    methods: list[str],
    seeds: int,
    *,
    min_ratings: int = MIN_RATINGS,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit and measure: method → its rows by seed, and how alike the clusters of its seeds are."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    views: dict[str, list[dict[SideName, Views]]] = {name: [] for name in methods}
    for seed in range(seeds):
        fits = Fits(split, scale, seed, settings or {})
        for name in methods:
            clustering = METHODS[name](fits)
            rows[name].append({"seed": seed, **measured(fits, clustering, features, min_ratings)})
            views[name].append(clustering.views)
            print(f"  seed {seed} {name:32} {_line(rows[name][-1])}", flush=True)
    found = {}
    for name in methods:
        pairs = list(combinations(views[name], 2))
        alike = {side: [stability_of(a[side], b[side]) for a, b in pairs] if pairs else [] for side in SIDES}
        found[name] = {
            "rows": rows[name],
            "stability": {
                side: {
                    key: statistics.fmean(getattr(one, key) for one in of_side)
                    for key in ("similarity", "chance", "ami")
                }
                for side, of_side in alike.items()
                if of_side
            },
        }
    return found


def _line(row: dict[str, Any]) -> str:
    family = row["sides"]["item"]["families"][0]
    rmse = "-     " if row["rmse"] is None else f"{row['rmse']:.4f}"
    return (
        f"RMSE {rmse} entropy {row['mean_entropy']:.2f} {family['name']} AMI {family['consensus_ami']:.4f}"
        f" best view {family['best_ami']:.4f} AUC {family['mean_auc']['memberships']:.3f}"
    )


def claims(methods: dict[str, Any], family: str) -> list[dict[str, Any]]:
    """What was promised of a preset, whether it is so, and the figures: all of them means over the seeds."""

    def mean(name: str, of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(of(row) for row in methods[name]["rows"])

    def scores(row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in row["sides"]["item"]["families"] if one["name"] == family)
        return found

    out = []
    for name in CANDIDATES:
        ami = mean(name, lambda row: scores(row)["consensus_ami"])
        baseline = mean(BASELINE, lambda row: scores(row)["consensus_ami"])
        p = max(scores(row)["consensus_p_value"] for row in methods[name]["rows"])
        rmse = mean(name, lambda row: row["rmse"]) - mean(ACCURATE, lambda row: row["rmse"])
        entropy = mean(name, lambda row: row["mean_entropy"])
        pruned = mean(name, lambda row: row["pruned"])
        for claim, met, figure in (
            (f"{family}: consensus AMI above {BASELINE}", ami > baseline, f"{ami:.4f} against {baseline:.4f}"),
            (f"{family}: above permutation at p < {ALPHA}", p < ALPHA, f"greatest p {p:.3f}"),
            (f"RMSE within {MOST_RMSE} of accurate", rmse <= MOST_RMSE, f"{rmse:+.4f}"),
            (f"mean normalised entropy at most {MOST_ENTROPY}", entropy <= MOST_ENTROPY, f"{entropy:.2f}"),
            ("a third of the clusters pruned", pruned >= LEAST_PRUNED, f"{pruned:.0%}"),
        ):
            out.append({"model": name, "claim": claim, "met": bool(met), "figure": figure})
    return out


def merged(found: dict[str, Any], commit: str, earlier: dict[str, Any]) -> dict[str, Any]:
    """The models that were run, and of the others the earlier results of the dataset, each with its commit."""
    kept = {name: {"commit": earlier["commit"], **method} for name, method in earlier.get("methods", {}).items()}
    now = {name: {**method, "commit": commit} for name, method in found.items()}
    return {name: (kept | now)[name] for name in METHODS if name in kept | now}


def commits(result: dict[str, Any]) -> str:
    """The commits at which the models of a dataset were measured."""
    of: dict[str, list[str]] = {}
    for name, method in result["methods"].items():
        of.setdefault(method.get("commit", result["commit"]), []).append(name)
    return "; ".join(f"commit {commit}" + f": {', '.join(names)}" * (len(of) > 1) for commit, names in of.items())


def markdown(results: dict[str, Any]) -> str:
    """The tables of all datasets."""
    lines = [
        "# Do the clusters mean something?",
        "",
        "`python -m benchmarks.interpretability`; means over seeds, first fold. AMI: of one partition from all views"
        " (consensus) with the first label. Best and mean view: of hard assignments. AUC: cross-validated, mean over"
        " the labels, from the memberships of all views, from these made hard, from as many k-means clusters on the"
        " same model's embeddings, and from the embeddings; hard is to be compared with k-means. p: the greatest"
        " permutation p-value of the consensus over the seeds. Stability: mean"
        " correlation of matched clusters between seeds, and what matching alone finds by chance. k-means on a model's"
        " vectors is listed with that model's RMSE.",
        "",
    ]
    for dataset, result in results["datasets"].items():
        methods = result["methods"]
        lines += [f"## {dataset}", "", f"{result['seeds']} seeds, {result['cpu']}, {commits(result)}", ""]
        head = ["model", "RMSE", "entropy", "pruned", "redundancy of items", "stability of items"]
        lines += table(head, [_overview(name, method) for name, method in methods.items()])
        first = next(iter(methods.values()))["rows"][0]["sides"]
        for side, of_side in first.items():
            for at, family in enumerate(of_side["families"]):
                lines += [
                    "",
                    f"### {side}: {family['name']} ({family['labels']} labels, {family['entities']} {side}s)",
                    "",
                ]
                head = [
                    "model",
                    "AMI",
                    "p",
                    "best view",
                    "mean view",
                    "soft, best view",
                    "all labels",
                    "labels that stand out",
                ]
                head += ["AUC", "AUC hard", "AUC of k-means", "AUC of embeddings"]
                lines += table(head, [_scores(name, method, side, at) for name, method in methods.items()])
        if result["claims"]:
            lines += ["", f"### {dataset}: what was promised", ""]
            rows = [
                [c["model"], c["claim"], "met" if c["met"] else "**not met**", c["figure"]] for c in result["claims"]
            ]
            lines += table(["model", "claim", "", "figure"], rows)
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _overview(name: str, method: dict[str, Any]) -> list[str]:
    rows = method["rows"]
    alike = method["stability"].get("item")
    return [
        name,
        "-" if rows[0]["rmse"] is None else _spread([row["rmse"] for row in rows], 4),
        " / ".join(f"{statistics.fmean(row['entropy'][side] for row in rows):.2f}" for side in SIDES),
        "-" if rows[0]["pruned"] is None else f"{statistics.fmean(row['pruned'] for row in rows):.0%}",
        f"{statistics.fmean(row['sides']['item']['redundancy'] for row in rows):.3f}",
        "-" if alike is None else f"{alike['similarity']:.2f} (chance {alike['chance']:.2f})",
    ]


def _scores(name: str, method: dict[str, Any], side: str, at: int) -> list[str]:
    families = [row["sides"][side]["families"][at] for row in method["rows"]]

    def auc(vectors: str) -> str:
        found = [family["mean_auc"].get(vectors) for family in families]
        return "-" if None in found else f"{statistics.fmean(found):.3f}"

    means = [
        _spread([family[key] for family in families], 4)
        for key in ("best_ami", "mean_ami", "best_soft_ami", "consensus_labelwise_ami")
    ]
    return [
        name,
        _spread([family["consensus_ami"] for family in families], 4),
        f"{max(family['consensus_p_value'] for family in families):.3f}",
        *means,
        f"{statistics.fmean(family['coverage']['labels'] for family in families):.0%}",
        *map(auc, ("memberships", "hard", "kmeans", "embeddings")),
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """AMI and AUC of the first family of items beside RMSE, a line of panels for each dataset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    datasets = results["datasets"]
    height = max(len(result["methods"]) for result in datasets.values()) * 0.28 + 1.0
    figure, grid = plt.subplots(
        len(datasets), 4, figsize=(15, height * len(datasets)), layout="constrained", squeeze=False, sharey="row"
    )
    for line, (dataset, result) in zip(grid, datasets.items(), strict=True):
        names = list(reversed(result["methods"]))
        family = result["methods"][names[0]]["rows"][0]["sides"]["item"]["families"][0]["name"]
        panels: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
            (f"{dataset}: AMI with {family}", lambda row: row["sides"]["item"]["families"][0]["consensus_ami"]),
            (f"AUC of {family}", lambda row: row["sides"]["item"]["families"][0]["mean_auc"]["memberships"]),
            ("test RMSE", lambda row: row["rmse"]),
            ("entropy of assignments", lambda row: row["mean_entropy"]),
        ]
        for axes, (title, of) in zip(line, panels, strict=True):
            for y, name in enumerate(names):
                values = [x for x in map(of, result["methods"][name]["rows"]) if x is not None]
                color = "#D55E00" if name.startswith("MFDMC") else "#0072B2" if "k-means" in name else "#555555"
                axes.plot(values, [y] * len(values), "o", color=color, markersize=4, alpha=0.6)
                if values:
                    axes.plot([statistics.fmean(values)], [y], "|", color=color, markersize=14)
            axes.set_title(title, fontsize=9)
            axes.grid(alpha=0.3)
        line[0].set_yticks(range(len(names)), names, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def quick() -> None:
    """Find planted clusters: those of MFDMC agree with them and foretell them, random ones do not."""
    planted = plant_ratings(400, 300, 30_000, n_views=3, n_clusters=3, seed=1)
    groups: dict[SideName, npt.NDArray[np.int64]] = {"user": planted.user_groups, "item": planted.item_groups}
    features: dict[SideName, Features] = {}
    for side, of_side in groups.items():
        n, n_views = of_side.shape
        blocks = [LabelBlock(f"planted view {v}", list("abc"), np.arange(n), of_side[:, v]) for v in range(n_views)]
        features[side] = Features(np.arange(1, n + 1), tuple(blocks))
    methods = ["MFDMC on raw ratings", ACCURATE, BASELINE, "random"]
    found = run(holdout(planted.ratings, 0.1, SPLIT_SEED), (1, 5), features, methods, 1, settings={"n_clusters": 6})
    failed = []
    for name in methods:
        for side in SIDES:
            by_chance = found["random"]["rows"][0]["sides"][side]["families"]
            for family, chance in zip(found[name]["rows"][0]["sides"][side]["families"], by_chance, strict=True):
                p, auc = family["consensus_p_value"], family["mean_auc"]["memberships"]
                print(f"{name:22} {side} {family['name']}: AMI {family['consensus_ami']:.3f} p {p:.3f} AUC {auc:.3f}")
                # one partition, as of k-means, cannot hold three clusterings: it need not foretell each as well
                needed = chance["mean_auc"]["memberships"] + 0.1 if name == BASELINE else 0.7
                is_found = p < ALPHA and auc > needed
                if is_found == (name == "random"):
                    failed.append(f"{name}, {side}, {family['name']}")
    if failed:
        raise SystemExit("planted clusters are not told from random ones: " + "; ".join(failed))


def main() -> None:
    """Run, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="ml-100k,ml-1m,amazon-hin", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="fits of every model, 1 or more")
    parser.add_argument("--methods", help="models to run, separated by commas, as they are named in the results; all")
    parser.add_argument("--quick", action="store_true", help="generated ratings with planted clusters; writes nothing")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if args.quick:
        quick()
        return
    names = args.methods.split(",") if args.methods else list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"--methods: unknown {', '.join(unknown)}; known are: {', '.join(METHODS)}")
    path = RESULTS / "interpretability.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"datasets": {}}
    for name in args.datasets.split(","):
        features = features_of(name)
        print(name)
        dataset = DATASETS[name]
        command = f"python -m benchmarks.interpretability --datasets {name} --seeds {args.seeds}"
        origin = provenance(command + (f" --methods '{args.methods}'" if args.methods else ""))
        earlier = results["datasets"].get(name, {"seeds": None})
        if len(names) < len(METHODS) and earlier["seeds"] != args.seeds:
            parser.error(f"--methods: {name} has results of {earlier['seeds']} seeds, not {args.seeds}; run all models")
        found = run(dataset.split(0), dataset.scale, features, names, args.seeds)
        methods = merged(found, origin["commit"], earlier)
        family = next(iter(features["item"].blocks)).name if name == "amazon-hin" else "genre"
        promised = claims(methods, family)
        results["datasets"][name] = {
            **origin,
            "seeds": args.seeds,
            "claims": promised,
            "methods": methods,
        }
        for claim in promised:
            print(f"  {claim['model']}: {claim['claim']}: {'met' if claim['met'] else 'NOT met'} ({claim['figure']})")
        write_json(path, results)
        write_markdown(markdown(results), path.with_suffix(".md"))
        plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
