"""Images as ratings: the data, MFDMC beside PCA, NMF and k-means at equal size, and what is measured of each.

An image is a user, a pixel an item, the value of a pixel in an image a rating from 0 to 16. Labels are used by the
measures alone; no method sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import NMF, PCA
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from mfdmc_fast.config import PRESETS
from mfdmc_fast.estimator import MFDMC

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIDE = 8
PIXELS = SIDE * SIDE
SCALE = (0.0, 16.0)
# numbers that every method has for an image
DIMENSION = 16
NEIGHBOURS = 5
HIDDEN = 0.1

# the equal size; 10 clusters a view
SHAPE: dict[str, Any] = {"n_views": 4, "view_dim": 4, "biases": False}
# `accurate` and `sharp` were chosen by benchmarks.tune_images; what is not named keeps its default
SETTINGS: dict[str, dict[str, Any]] = {
    "mfdmc-defaults": SHAPE,
    "mfdmc-accurate": {
        **SHAPE,
        "rating_unit": 1.0,
        "epochs": 120,
        "batch_size": 2048,
        "center_scale": 1.0,
        "logit_scale": 1.0,
        "learning_rate": 0.06,
        "learning_rate_centers": 0.08,
        "weight_l2": 0.1,
        "weight_spread": 0.0,
        "weight_proximity": 0.0,
        "weight_entropy": 0.0,
        "prune": False,
    },
    "mfdmc-sharp": {
        **SHAPE,
        "rating_unit": 1.0,
        "epochs": 60,
        "batch_size": 2048,
        "center_scale": 2.0,
        "logit_scale": 0.3,
        "learning_rate": 0.24,
        "learning_rate_centers": 0.08,
        "weight_l2": 0.06,
        "weight_spread": 0.3,
        "spread_margin": 3.0,
        "weight_proximity": "0:0.01:60",
        "weight_entropy": "0:0.5:60",
        "prune_threshold": 0.05,
    },
    # not chosen here: the preset as it is for five stars
    "mfdmc-taught": {**PRESETS["accurate"], **SHAPE},
}


@dataclass(frozen=True, eq=False)
class Images:
    """Square grey images.

    Attributes:
        name: of the dataset.
        pixels: [n, PIXELS] values in [0, 16], row by row of an image.
        labels: [n] int64, 0 to number of labels - 1.
    """

    name: str
    pixels: Floats
    labels: Ints

    @property
    def n_labels(self) -> int:
        """Distinct labels."""
        return int(self.labels.max()) + 1


def digits(n: int | None, seed: int) -> Images:
    """The 1,797 handwritten digits of scikit-learn with their values as they are, or n of them drawn by `seed`."""
    pixels, labels = load_digits(return_X_y=True)
    rows = slice(None) if n is None else np.random.default_rng(seed).permutation(len(pixels))[:n]
    return Images("digits", pixels[rows].astype(np.float64), labels[rows].astype(np.int64))


def patches(n: int | None, seed: int) -> Images:
    """Patches without overlap of the two photographs of scikit-learn (a temple, a flower), n (2,000) drawn by `seed`,
    half of them from each; grey values 0 to 255 divided by 255 / 16; the label is the photograph.
    """
    rng = np.random.default_rng(seed)
    found = []
    for picture in load_sample_images().images:
        grey = picture.mean(axis=2)
        high, wide = (size // SIDE for size in grey.shape)
        tiles = grey[: high * SIDE, : wide * SIDE].reshape(high, SIDE, wide, SIDE).swapaxes(1, 2).reshape(-1, PIXELS)
        found.append(tiles[rng.permutation(len(tiles))[: (n or 2000) // 2]] * (SCALE[1] / 255))
    return Images("patches", np.concatenate(found), np.repeat(np.arange(len(found)), len(found[0])))


DATASETS: dict[str, Callable[[int | None, int], Images]] = {"digits": digits, "patches": patches}


class Reduced(NamedTuple):
    """What a method makes of images.

    Attributes:
        embedding: [n, DIMENSION].
        reconstruction: [n, PIXELS], clipped to [0, 16].
        model: the fitted MFDMC, or None.
    """

    embedding: Floats
    reconstruction: Floats
    model: MFDMC | None = None


def pca(pixels: Floats, seed: int) -> Reduced:
    """Principal components, and the mean image beside them; `seed` changes nothing."""
    model = PCA(DIMENSION, svd_solver="full").fit(pixels)
    embedding = model.transform(pixels)
    return Reduced(embedding, model.inverse_transform(embedding).clip(*SCALE))


def nmf(pixels: Floats, seed: int, init: str = "nndsvd", tol: float = 1e-3) -> Reduced:
    """Factors of 0 or more, squared error, no penalty. Basis images have length 1, so that a number of the embedding
    is in units of pixel values, as with PCA: with scikit-learn's own scaling k-NN and clusters are worse.
    """
    # values put in the place of hidden pixels may lie below 0 by rounding
    model = NMF(DIMENSION, init=init, max_iter=5000, tol=tol, random_state=seed)
    embedding = model.fit_transform(pixels.clip(min=0))
    reconstruction = (embedding @ model.components_).clip(*SCALE)
    return Reduced(embedding * np.linalg.norm(model.components_, axis=1), reconstruction)


def k_means(pixels: Floats, seed: int) -> Reduced:
    """DIMENSION clusters: the distances to their centers as embedding, the nearest center as reconstruction."""
    model = KMeans(DIMENSION, n_init=10, random_state=seed).fit(pixels)
    return Reduced(model.transform(pixels), model.cluster_centers_[model.labels_])


def mfdmc(pixels: Floats, known: Bools, settings: dict[str, Any], seed: int) -> Reduced:
    """MFDMC fitted to the known pixels as ratings.

    Args:
        pixels: [n, PIXELS].
        known: [n, PIXELS]; the others are not read.
        settings: of the estimator.
        seed: of the estimator.
    """
    images, items = np.nonzero(known)
    model = MFDMC(seed=seed, **settings).fit((images, items, pixels[images, items]), rating_scale=SCALE)
    n = len(pixels)
    reconstruction = model.predict(np.repeat(np.arange(n), PIXELS), np.tile(np.arange(PIXELS), n))
    embedding = model.model_.embeddings("user").numpy()[image_rows(model, n)]
    return Reduced(embedding.astype(np.float64), reconstruction.reshape(n, PIXELS).astype(np.float64), model)


def image_rows(model: MFDMC, n: int) -> Ints:
    """[n] rows of images 0 to n - 1 in the tables of a fitted model."""
    return model.users_.encode(np.arange(n))


def memberships(model: MFDMC, side: Any, n: int) -> list[Floats]:
    """[n, K_v] weights of each view, of images (`user`) or pixels (`item`) 0 to n - 1."""
    vocabulary = model.users_ if side == "user" else model.items_
    rows = vocabulary.encode(np.arange(n))
    found = model.model_.prunable_sides()[side].assignment_weights()
    return [view.numpy()[rows].astype(np.float64) for view in found]


Fit = Callable[..., Reduced]
BASELINES: dict[str, Fit] = {"pca": pca, "nmf": nmf, "k-means": k_means}
# how these fill in hidden pixels: refits and options, chosen by benchmarks.tune_images
COMPLETION: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {"pca": {"rounds": 5}, "nmf": {"rounds": 26, "init": "nndsvda"}, "k-means": {"rounds": 10}},
    "patches": {
        "pca": {"rounds": 50},
        "nmf": {"rounds": 13, "init": "nndsvda", "tol": 1e-4},
        "k-means": {"rounds": 7},
    },
}


def completions(method: str, pixels: Floats, known: Bools, seed: int, rounds: int, **options: Any) -> list[Floats]:
    """Reconstructions from known pixels alone by a method that needs them all: hidden ones start as the mean of the
    pixel; then fit, put the reconstruction in their place, and again.

    For PCA this is expectation maximization of the squared error over the known pixels (Srebro and Jaakkola, 2003).
    Few rounds, and fits that stop early, overfit less.

    Args:
        method: of `BASELINES`.
        pixels: [n, PIXELS].
        known: [n, PIXELS]; the others are not read.
        seed, options: of the method.
        rounds: number of fits.

    Returns:
        The reconstruction [n, PIXELS] of each of the rounds.
    """
    means = np.where(known, pixels, 0.0).sum(0) / known.sum(0)
    filled = np.where(known, pixels, means)
    found = []
    for _ in range(rounds):
        found.append(BASELINES[method](filled, seed, **options).reconstruction)
        filled = np.where(known, pixels, found[-1])
    return found


def hide(shape: tuple[int, int], seed: int) -> Bools:
    """[n, PIXELS]: True for known pixels; each is hidden with probability HIDDEN."""
    return np.random.default_rng(seed).random(shape) >= HIDDEN


def rmse(values: Floats, truth: Floats) -> float:
    """Root of the mean squared difference, in units of pixel values."""
    return float(np.sqrt(((values - truth) ** 2).mean()))


def halves(labels: Ints, seed: int) -> tuple[Ints, Ints]:
    """Two halves of the images, drawn by `seed`, each with all labels in their proportions."""
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=seed, stratify=labels)
    return train, test


def knn_accuracy(points: Floats, labels: Ints, seed: int) -> float:
    """Share of one half of the images whose label the 5 nearest images of the other half name, by majority."""
    train, test = halves(labels, seed)
    model = KNeighborsClassifier(NEIGHBOURS).fit(points[train], labels[train])
    return float(model.score(points[test], labels[test]))


def agreement(clusters: Ints, labels: Ints) -> tuple[float, float]:
    """Normalized and adjusted mutual information (arithmetic means): 1 for the same partition; by chance AMI is 0."""
    return (
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_mutual_info_score(labels, clusters)),
    )


def k_means_agreement(points: Floats, images: Images, seed: int) -> tuple[float, float]:
    """`agreement` of k-means on the points, with as many clusters as labels, the best of 10 starts."""
    model = KMeans(images.n_labels, n_init=10, random_state=seed).fit(points)
    return agreement(model.labels_.astype(np.int64), images.labels)


def entropies(views: list[Floats]) -> Floats:
    """[V] mean over entities of -Σ_k w_k ln w_k / ln K_v: 0 where each has one cluster, 1 where weights are flat."""
    return np.array([-(v * np.log(np.maximum(v, 1e-300))).sum(1).mean() / np.log(v.shape[1]) for v in views])


def measure_points(points: Floats, images: Images, seed: int) -> dict[str, float]:
    """k-NN accuracy, and NMI and AMI of k-means clusters, of one vector an image."""
    nmi, ami = k_means_agreement(points, images, seed)
    return {"knn": knn_accuracy(points, images.labels, seed), "nmi": nmi, "ami": ami}


def measure_views(model: MFDMC, images: Images, seed: int) -> dict[str, Any]:
    """What only MFDMC has: memberships of all views side by side, and the views' own clusters.

    The sharpest view is the one of the lowest entropy, so labels do not choose it.
    """
    views = memberships(model, "user", len(images.labels))
    together = measure_points(np.concatenate(views, axis=1), images, seed)
    own = [agreement(view.argmax(1), images.labels) for view in views]
    by_view = entropies(views)
    sharpest = own[int(by_view.argmin())]
    return {
        **{f"memberships_{name}": value for name, value in together.items()},
        "sharpest_view_nmi": sharpest[0],
        "sharpest_view_ami": sharpest[1],
        "mean_view_nmi": float(np.mean([nmi for nmi, _ in own])),
        "mean_view_ami": float(np.mean([ami for _, ami in own])),
        "entropy_images": float(by_view.mean()),
        "entropy_pixels": float(entropies(memberships(model, "item", PIXELS)).mean()),
        "clusters_images": [view.shape[1] for view in views],
        "clusters_pixels": model.model_.clusters("item"),
        "backend": model.history_.backend,
    }


def measure(method: str, images: Images, seed: int) -> dict[str, Any]:
    """All measures of a method (`pixels`: the images themselves) on images, with one seed for all that is drawn."""
    if method == "pixels":
        return measure_points(images.pixels, images, seed)
    everything = np.ones(images.pixels.shape, dtype=bool)
    known = hide(images.pixels.shape, seed)
    if method in BASELINES:
        reduced = BASELINES[method](images.pixels, seed)
        completed = completions(method, images.pixels, known, seed, **COMPLETION[images.name][method])[-1]
    else:
        reduced = mfdmc(images.pixels, everything, SETTINGS[method], seed)
        completed = mfdmc(images.pixels, known, SETTINGS[method], seed).reconstruction
    found = {
        **measure_points(reduced.embedding, images, seed),
        "rmse": rmse(reduced.reconstruction, images.pixels),
        "hidden_rmse": rmse(completed[~known], images.pixels[~known]),
    }
    return found if reduced.model is None else {**found, **measure_views(reduced.model, images, seed)}
