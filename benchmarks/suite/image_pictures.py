"""What is shown of a run on images: the centers of MFDMC's clusters, and what each method makes of some images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.suite.images import BASELINES, PIXELS, SCALE, SETTINGS, Floats, Images, image_rows, memberships, mfdmc
from mfdmc_fast.estimator import MFDMC

# images in a line; also the clusters of a view before pruning
COLUMNS = 10
# the settings of MFDMC that are compared with the others, and those whose centers are shown
OURS = ("mfdmc-accurate", "mfdmc-taught", "mfdmc-sharp")
SHARP = "mfdmc-sharp"


def cluster_pictures(model: MFDMC, n: int) -> list[Floats]:
    """What the clusters of images look like: one [K_v, PIXELS] a view.

    The mean image, in which the part of the view is that of the center: (z_mean with c_k in its place for the view) ·
    z_pixel, for views that are joined (`concat`) and no biases; clipped to [0, 16].

    Args:
        model: fitted to images.
        n: number of images.
    """
    side = model.model_.prunable_sides()["user"]
    mean = model.model_.embeddings("user").numpy()[image_rows(model, n)].mean(0)
    pixels = model.model_.embeddings("item").numpy()[model.items_.encode(np.arange(PIXELS))]
    dim = model.view_dim
    pictures = []
    for view, of_view in enumerate(side.centers.detach().split(side.n_clusters)):
        images = np.tile(mean, (len(of_view), 1))
        images[:, view * dim : (view + 1) * dim] = of_view.numpy()
        pictures.append((images @ pixels.T).clip(*SCALE).astype(np.float64))
    return pictures


class Centers(NamedTuple):
    """The clusters of images of one view, by usage: mean weights [K_v] and pictures [K_v, PIXELS]."""

    usage: Floats
    pictures: Floats


def centers(images: Images, method: str, seed: int) -> list[Centers]:
    """The clusters of images of every view of a fit."""
    fitted = mfdmc(images.pixels, np.ones(images.pixels.shape, dtype=bool), SETTINGS[method], seed)
    assert fitted.model is not None
    n = len(images.labels)
    found = []
    for weights, pictures in zip(memberships(fitted.model, "user", n), cluster_pictures(fitted.model, n), strict=True):
        usage = weights.mean(0)
        order = np.argsort(-usage, kind="stable")
        found.append(Centers(usage[order], pictures[order]))
    return found


def reconstructions(images: Images, seed: int) -> dict[str, Floats]:
    """COLUMNS images, of each label the first ones, and what each method makes of them: [COLUMNS, PIXELS]."""
    everything = np.ones(images.pixels.shape, dtype=bool)
    each = COLUMNS // images.n_labels
    first = [int(at) for label in range(images.n_labels) for at in np.flatnonzero(images.labels == label)[:each]]
    rows = {"original": images.pixels}
    rows |= {name: mfdmc(images.pixels, everything, SETTINGS[name], seed).reconstruction for name in OURS}
    rows |= {name: fit(images.pixels, seed).reconstruction for name, fit in BASELINES.items()}
    return {name: pixels[first] for name, pixels in rows.items()}
