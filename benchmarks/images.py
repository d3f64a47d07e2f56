"""Beyond ratings: images. MFDMC beside PCA, NMF and k-means of equal size, on the images that scikit-learn ships.

    python -m benchmarks.images [--quick] [--seeds 5] [--methods A,B] [--json FILE] [--report FILE]

An image is a user, a pixel an item, the value of a pixel (0 to 16) a rating, and `MFDMC.fit` gets them like any other
ratings. Two datasets: the 1,797 handwritten digits of 8x8 pixels, labels 0 to 9; and 2,000 patches of 8x8 pixels of the
two sample photographs, the label is the photograph. Every method has 16 numbers for an image: MFDMC 4 views of 4
dimensions without biases, PCA and NMF 16 components, k-means the distances to 16 centers.

For each seed (it draws k-NN's halves, the hidden pixels, the patches and all initial values):
k-NN accuracy: all images are embedded, without labels; half of them, with labels, are searched for the 5 nearest
neighbours of each of the other half.
NMI, AMI: with the labels, of k-means on the embeddings, as many clusters as labels.
RMSE: of the reconstructed pixels, in units of pixel values and clipped to 0 to 16, with all pixels known.
RMSE, hidden: of a tenth of the pixels, drawn at random, that the method has not seen. MFDMC fits to the known ones
alone; PCA, NMF and k-means fill in and refit, see `completions`.

Two settings of MFDMC were chosen by `benchmarks.tune_images` on other seeds, without labels: `mfdmc-accurate` without
the paper's terms, `mfdmc-sharp` with all terms and pruning. `mfdmc-defaults` has the defaults and `mfdmc-taught` the
preset `accurate`, which learns from a Bayesian teacher: both were chosen for five stars. `pixels` are the images
themselves, 64 numbers, as a reference.

Writes results/images.json, with .md and .png beside it; with --quick only what --json asks for. With --methods the
others keep the figures, and the commit of these, that the file has for these seeds. --report writes tables,
centers and reconstructions as one HTML page in the format of `mfdmc report`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.results_file import RESULTS, provenance, write_json
from benchmarks.suite.image_pictures import COLUMNS, OURS, SHARP, centers, reconstructions
from benchmarks.suite.images import BASELINES, COMPLETION, DATASETS, SCALE, SETTINGS, SIDE, Floats, Images, measure
from benchmarks.suite.report import table, write_markdown
from benchmarks.suite.statistics import Interval, paired_interval
from mfdmc_fast.files import replacing
from mfdmc_fast.report.images import Gallery, ImageSection, Picture, Scores, write_images

TITLE = "Images: MFDMC beside PCA, NMF and k-means"
REFERENCE = "pixels"
METHODS = (REFERENCE, *BASELINES, *SETTINGS)
QUICK_IMAGES, QUICK_SEEDS = 500, 2
COLORS = {
    "pixels": "#999999",
    "pca": "#0072B2",
    "nmf": "#009E73",
    "k-means": "#CC79A7",
    "mfdmc-defaults": "#F0E442",
    "mfdmc-accurate": "#D55E00",
    "mfdmc-taught": "#56B4E9",
    "mfdmc-sharp": "#E69F00",
}
Rows = list[dict[str, Any]]
_WINNING = (
    "Where MFDMC wins and loses: the 95 % interval of the difference, seed by seed, leaves out 0. In brackets MFDMC"
    " minus the other. The intervals are over seeds, not over other images of the kind, and there are many of them."
)


class Measure(NamedTuple):
    """A column: name in the rows, title, sign of what is better."""

    key: str
    title: str
    sign: int


MEASURES = (
    Measure("knn", "k-NN accuracy", 1),
    Measure("nmi", "NMI", 1),
    Measure("ami", "AMI", 1),
    Measure("rmse", "RMSE", -1),
    Measure("hidden_rmse", "RMSE, hidden", -1),
)
# what only MFDMC has
VIEW_MEASURES = {
    "memberships_knn": "k-NN accuracy, memberships",
    "memberships_nmi": "NMI, memberships",
    "memberships_ami": "AMI, memberships",
    "sharpest_view_nmi": "NMI, sharpest view",
    "mean_view_nmi": "NMI, mean view",
    "entropy_images": "entropy, images",
    "entropy_pixels": "entropy, pixels",
}


def values(rows: Rows, dataset: str, method: str, key: str) -> dict[int, float]:
    """Seed → value; empty where the method has no such measure."""
    found = [row for row in rows if row["dataset"] == dataset and row["method"] == method and key in row]
    return {row["seed"]: row[key] for row in found}


def interval(rows: Rows, dataset: str, method: str, key: str) -> Interval | None:
    """Mean over the seeds and Student's 95 % interval."""
    found = values(rows, dataset, method, key)
    return paired_interval(list(found.values()), "seeds") if found else None


def difference(rows: Rows, dataset: str, ours: str, other: str, column: Measure) -> Interval:
    """Of ours minus the other, seed by seed, with the sign that makes more better."""
    a, b = (values(rows, dataset, method, column.key) for method in (ours, other))
    return paired_interval([column.sign * (a[seed] - b[seed]) for seed in a], "seeds")


def verdict(found: Interval) -> str:
    """`wins` or `loses` where the interval of the difference leaves out 0, else `even`."""
    if found.low is None or found.high is None:
        return "even"
    return "wins" if found.low > 0 else "loses" if found.high < 0 else "even"


def shown(found: Interval | None) -> str:
    """Mean ± half of the interval."""
    if found is None:
        return ""
    return f"{found.mean:.3f}" if found.high is None else f"{found.mean:.3f} ± {found.high - found.mean:.3f}"


def markdown(rows: Rows) -> str:
    """All tables, and who wins."""
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"# {TITLE}\n",
        "Written by `python -m benchmarks.images`, which says what is measured and how the settings were chosen.",
        f"Means over {seeds} seeds with Student's 95 % interval. 16 numbers for an image; `pixels` has 64.",
        f"Measured at {measured_at(rows)}.",
    ]
    for dataset in DATASETS:
        n = next(row["images"] for row in rows if row["dataset"] == dataset)
        parts.append(f"\n## {dataset}, {n:,} images\n")
        lines = [
            (method, *(shown(interval(rows, dataset, method, column.key)) for column in MEASURES)) for method in METHODS
        ]
        parts += table(("", *(column.title for column in MEASURES)), lines)
        parts += ["\nOf MFDMC alone: the memberships of all views side by side, and the views' own clusters.\n"]
        lines = [
            (title, *(shown(interval(rows, dataset, method, key)) for method in SETTINGS))
            for key, title in VIEW_MEASURES.items()
        ]
        lines.append(("clusters left, images / pixels", *(clusters_left(rows, dataset, m) for m in SETTINGS)))
        parts += table(("", *SETTINGS), lines)
        parts += [f"\n{_WINNING}\n"]
        for ours in OURS:
            parts += [f"- **{ours}** {line}" for line in verdicts(rows, dataset, ours)]
    return "\n".join(parts) + "\n"


def measured_at(rows: Rows) -> str:
    """The commits of the rows, with their methods where there are several."""
    of: dict[str, list[str]] = {}
    for row in rows:
        names = of.setdefault(row["commit"], [])
        names += [row["method"]] * (row["method"] not in names)
    return "; ".join(f"commit {commit}" + f" ({', '.join(names)})" * (len(of) > 1) for commit, names in of.items())


def clusters_left(rows: Rows, dataset: str, method: str) -> str:
    """Means over the seeds of all views together."""
    sides = ("clusters_images", "clusters_pixels")
    found = [values(rows, dataset, method, key).values() for key in sides]
    return " / ".join(f"{statistics.fmean(sum(views) for views in counts):.1f}" for counts in found)  # type: ignore[arg-type]


def verdicts(rows: Rows, dataset: str, ours: str) -> list[str]:
    """A line for each other method: in which measures ours wins, loses, and neither."""
    lines = []
    for other in BASELINES:
        by_verdict: dict[str, list[str]] = {"wins": [], "loses": [], "even": []}
        for column in MEASURES:
            found = difference(rows, dataset, ours, other, column)
            by_verdict[verdict(found)].append(f"{column.title} ({column.sign * found.mean:+.3f})")
        said = [f"{word}: {', '.join(names)}" for word, names in by_verdict.items() if names]
        lines.append(f"against {other}: {'; '.join(said)}")
    return lines


def show(axes: Any, picture: Floats, title: str = "") -> None:
    """One image on axes."""
    axes.imshow(picture.reshape(SIDE, SIDE), cmap="gray_r", vmin=SCALE[0], vmax=SCALE[1])
    axes.set_title(title, fontsize=6, pad=2)


def draw_centers(figure: Any, images: Images, seed: int) -> None:
    """A row for each view, its clusters by usage."""
    views = centers(images, SHARP, seed)
    grid = figure.subplots(len(views), COLUMNS)
    for line, of_view in zip(grid, views, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, usage, picture in zip(line, *of_view, strict=False):
            show(axes, picture, f"{usage:.0%}")
    figure.suptitle(
        f"{images.name}: centers of the image clusters of {SHARP}, a view a row, with their usage", fontsize=9
    )


def draw_reconstructions(figure: Any, images: Images, seed: int) -> None:
    """A row for each method."""
    rows = reconstructions(images, seed)
    grid = figure.subplots(len(rows), COLUMNS)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            show(axes, picture)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(f"{images.name}: originals and reconstructions", fontsize=9)


def draw_scores(figure: Any, rows: Rows) -> None:
    """Bars with intervals: a row for each dataset, a panel for each measure."""
    grid = figure.subplots(len(DATASETS), len(MEASURES), squeeze=False)
    for line, dataset in zip(grid, DATASETS, strict=True):
        for axes, column in zip(line, MEASURES, strict=True):
            for at, method in enumerate(METHODS):
                found = interval(rows, dataset, method, column.key)
                if found is not None:
                    half = None if found.high is None else found.high - found.mean
                    axes.barh(at, found.mean, xerr=half, color=COLORS[method], error_kw={"linewidth": 0.8})
            axes.set_yticks(range(len(METHODS)), METHODS if column is MEASURES[0] else [""] * len(METHODS), fontsize=7)
            axes.set_ylim(len(METHODS) - 0.5, -0.5)
            axes.tick_params(axis="x", labelsize=7)
            better = "more" if column.sign > 0 else "less"
            axes.set_title(f"{dataset}: {column.title} ({better} is better)", fontsize=7)
            axes.grid(axis="x", alpha=0.3)


def plot(rows: Rows, n: int | None, path: Path) -> None:
    """Centers, reconstructions and scores as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 11), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1.4))
    left, right = top.subfigures(1, 2)
    parts = (left.subfigures(2, 1), right.subfigures(2, 1))
    for load, of_centers, of_images in zip(DATASETS.values(), *parts, strict=True):
        images = load(n, 0)
        draw_centers(of_centers, images, 0)
        draw_reconstructions(of_images, images, 0)
    draw_scores(bottom, rows)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def page_section(rows: Rows, dataset: str, n: int | None) -> ImageSection:
    """What the page says of a dataset: all scores, who wins, centers and reconstructions of seed 0."""
    cells = [[interval(rows, dataset, method, column.key) for column in MEASURES] for method in METHODS]
    best = []
    for at, column in enumerate(MEASURES):
        means = [column.sign * one[at].mean if one[at] else -np.inf for one in cells]
        means[METHODS.index(REFERENCE)] = -np.inf
        best.append(int(np.argmax(means)))
    of_methods = [(method, [shown(one) for one in of_method]) for method, of_method in zip(METHODS, cells, strict=True)]
    scores = Scores(
        "Means over the seeds; bold: best of those with 16 numbers",
        [column.title for column in MEASURES],
        of_methods,
        best,
    )
    of_views = [
        (title, [shown(interval(rows, dataset, method, key)) for method in SETTINGS])
        for key, title in VIEW_MEASURES.items()
    ]
    alone = Scores("Memberships and views of MFDMC", list(SETTINGS), of_views, [None] * len(SETTINGS))
    images = DATASETS[dataset](n, 0)
    views = [
        (f"view {view}", [picture(p, f"{u:.0%}", f"cluster with {u:.0%} of the weight") for u, p in pairs])
        for view, pairs in enumerate(zip(*of_view, strict=True) for of_view in centers(images, SHARP, 0))
    ]
    made = [
        (name, [picture(p, "", f"image {at} by {name}") for at, p in enumerate(pictures)])
        for name, pictures in reconstructions(images, 0).items()
    ]
    return ImageSection(
        f"{dataset}, {len(images.labels):,} images",
        "16 numbers for an image; pixels has 64. k-NN accuracy, NMI and AMI compare with the labels, which no method"
        " has seen: more is better. RMSE in pixel values, 0 to 16, with all pixels known and on a hidden tenth: less is"
        f" better. {_WINNING}",
        [scores, alone],
        [(ours, line) for ours in OURS for line in verdicts(rows, dataset, ours)],
        [
            Gallery(
                f"Centers of {SHARP}",
                "The mean image with the part of one view replaced by that of a center, and the usage of the center."
                " A row is a view; its missing centers were pruned.",
                views,
            ),
            Gallery("Reconstructions", "Images of every label, and what each method makes of its numbers.", made),
        ],
    )


def picture(pixels: Floats, caption: str, says: str) -> Picture:
    """An image for the page."""
    return Picture(pixels.reshape(SIDE, SIDE) / SCALE[1], caption, says)


def run(n: int | None, seeds: int, methods: Sequence[str] = METHODS) -> Rows:
    """Methods on every dataset with seeds 0 to seeds - 1; n images of each, all of them if None."""
    commit = provenance("")["commit"]
    rows = []
    for dataset, load in DATASETS.items():
        for seed in range(seeds):
            images = load(n, seed)
            for method in methods:
                found = measure(method, images, seed)
                what = {"dataset": dataset, "method": method, "seed": seed, "images": len(images.labels)}
                rows.append({**what, "commit": commit, **found})
                figures = "  ".join(f"{c.title} {found[c.key]:.3f}" for c in MEASURES if c.key in found)
                print(f"{dataset}, seed {seed}, {method:15s} {figures}", flush=True)
    return rows


def earlier_rows(path: Path | None, methods: Sequence[str], seeds: int) -> Rows:
    """The rows of the other methods in a file of results; SystemExit where it has not all of these seeds."""
    results = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {"rows": []}
    rows = [{"commit": results["commit"], **row} for row in results["rows"] if row["method"] not in methods]
    there = {(row["dataset"], row["method"], row["seed"]) for row in rows}
    wanted = {(d, m, s) for d in DATASETS for m in METHODS if m not in methods for s in range(seeds)}
    if there != wanted:
        raise SystemExit(f"{path} does not have {seeds} seeds of all methods that are not named; run them all")
    return rows


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds of {QUICK_IMAGES} images")
    parser.add_argument("--seeds", type=int, help="how many (5)")
    parser.add_argument("--methods", help="which to run, separated by commas; the others are read from the results")
    parser.add_argument("--json", type=Path, help="where to write the results, with .md and .png beside them")
    parser.add_argument("--report", type=Path, help="where to write an HTML page of the results")
    args = parser.parse_args()
    # the fits are small
    torch.set_num_threads(1)
    seeds = args.seeds or (QUICK_SEEDS if args.quick else 5)
    n = QUICK_IMAGES if args.quick else None
    path = args.json or (None if args.quick else RESULTS / "images.json")
    methods = args.methods.split(",") if args.methods else list(METHODS)
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: unknown {', '.join(unknown)}; known are: {', '.join(METHODS)}")
    kept = [] if len(methods) == len(METHODS) else earlier_rows(path, methods, seeds)
    rows = kept + run(n, seeds, methods)
    text = markdown(rows)
    print(text)
    command = f"python -m benchmarks.images{' --quick' * args.quick} --seeds {seeds}"
    command += f" --methods {args.methods}" if args.methods else ""
    if args.report:
        said = f"{command}, {seeds} seeds, {measured_at(rows)}, {provenance(command)['cpu']}."
        write_images(args.report, [page_section(rows, dataset, n) for dataset in DATASETS], title=TITLE, text=said)
        print(f"wrote {args.report}")
    if path is None:
        return
    chosen = {"settings": SETTINGS, "completion": COMPLETION}
    write_json(path, {**provenance(command), **chosen, "rows": rows})
    write_markdown(text, path.with_suffix(".md"))
    plot(rows, n, path.with_suffix(".png"))
    print(f"wrote {path}, .md and .png")


if __name__ == "__main__":
    main()
