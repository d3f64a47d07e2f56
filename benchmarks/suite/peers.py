"""Other libraries, each called as its own users call it, with its own defaults.

Where one is missing, its cells are skipped and say so (`pip install -e '.[peers]'`; LIBMF's own `mf-train` and
`mf-predict` on PATH, or `LIBMF_TRAIN` naming the first, with the second beside it). None of them is trained on anything
but ids and ratings. What a library predicts for an unknown user or item is its own affair; a missing prediction is
replaced by the mean training rating. Before its cells count, the default installation must reach a known RMSE on
ml-100k's u1, see `Sanity`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.suite.models import Model, Sanity, Scores, Task
from mfdmc_fast.data import Ratings, Vocabulary
from mfdmc_fast.tuning import Choice, Range


def _needs(package: str, pip_name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{pip_name} is not installed"
        try:
            importlib.import_module(package)
        except Exception as error:
            return f"{pip_name} cannot be imported: {error}"
        return None

    return missing


class _Surprise:
    """Surprise's SVD and SVD++."""

    def __init__(self, kind: str, task: Task, settings: dict[str, Any]) -> None:
        import pandas as pd
        import surprise

        frame = pd.DataFrame({"user": task.train.users, "item": task.train.items, "rating": task.train.ratings})
        reader = surprise.Reader(rating_scale=task.scale)
        trainset = surprise.Dataset.load_from_df(frame, reader).build_full_trainset()
        self._algorithm = getattr(surprise, kind)(**settings, random_state=task.seed).fit(trainset)
        self._implicit = kind == "SVDpp"
        self._items = Vocabulary.from_values(task.train.items).ids.tolist()

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        pairs = ((user, item, 0.0) for user, item in zip(users.tolist(), items.tolist(), strict=True))
        return np.array([prediction.est for prediction in self._algorithm.test(pairs)])

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        algorithm, trainset = self._algorithm, self._algorithm.trainset
        columns = [trainset.to_inner_iid(item) for item in self._items]
        rows = [trainset.to_inner_uid(user) for user in users.tolist()]
        vectors = algorithm.pu[rows]
        if self._implicit:
            for vector, row in zip(vectors, rows, strict=True):
                rated = [item for item, _ in trainset.ur[row]]
                vector += algorithm.yj[rated].sum(0) / np.sqrt(len(rated))
        biases = trainset.global_mean + algorithm.bu[rows, None] + algorithm.bi[None, columns]
        scores: Scores = biases + vectors @ algorithm.qi[columns].T
        return scores

    def details(self) -> dict[str, Any]:
        return {}


class _Cornac:
    """Cornac's MF; `rate` is what its own evaluation calls."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        import cornac

        train = task.train
        triples = zip(train.users.tolist(), train.items.tolist(), train.ratings.tolist(), strict=True)
        self._data = cornac.data.Dataset.from_uir(triples)
        model = cornac.models.MF(**settings, num_threads=task.threads, seed=task.seed)
        self._model = model.fit(self._data)
        self._items = Vocabulary.from_values(train.items).ids.tolist()

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        of_users, of_items, rate = self._data.uid_map, self._data.iid_map, self._model.rate
        # Cornac numbers what it does not know beyond what it does
        rows = (of_users.get(user, len(of_users)) for user in users.tolist())
        columns = (of_items.get(item, len(of_items)) for item in items.tolist())
        return np.array([rate(row, column) for row, column in zip(rows, columns, strict=True)], dtype=np.float64)

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        columns = [self._data.iid_map[item] for item in self._items]
        return np.stack([self._model.score(self._data.uid_map[user])[columns] for user in users.tolist()])

    def details(self) -> dict[str, Any]:
        return {}


class _MyFM:
    """myFM: a factorization machine on one-hot user and item ids, by Gibbs sampling."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        import myfm
        from sklearn.preprocessing import OneHotEncoder

        self._encoder = OneHotEncoder(handle_unknown="ignore")
        pairs = self._encoder.fit_transform(_pairs(task.train.users, task.train.items))
        sizes = [len(ids) for ids in self._encoder.categories_]
        settings = dict(settings)
        n_iter = settings.pop("n_iter", 400)
        model = myfm.MyFMRegressor(rank=settings.pop("rank", 16), random_seed=task.seed, **settings)
        self._model = model.fit(pairs, task.train.ratings, n_iter=n_iter, group_shapes=sizes)
        self._n_users = sizes[0]

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        predictions: Scores = self._model.predict(self._encoder.transform(_pairs(users, items)))
        return predictions

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        rows = np.searchsorted(self._encoder.categories_[0], users)
        samples = self._model.predictor_.samples
        total = np.zeros((len(rows), len(self._encoder.categories_[1])))
        for sample in samples:
            linear, vectors = np.asarray(sample.w), np.asarray(sample.V)
            total += vectors[rows] @ vectors[self._n_users :].T
            total += sample.w0 + linear[rows, None] + linear[None, self._n_users :]
        scores: Scores = total / len(samples)
        return scores

    def details(self) -> dict[str, Any]:
        return {}


def _pairs(users: npt.NDArray[Any], items: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.column_stack([users, items])


def libmf_program(name: str) -> str | None:
    """The path of `mf-train` or `mf-predict`."""
    named = os.environ.get("LIBMF_TRAIN")
    if named:
        path = Path(named).with_name(name)
        return str(path) if path.exists() else None
    return shutil.which(name)


def _libmf_missing() -> str | None:
    absent = [name for name in ("mf-train", "mf-predict") if libmf_program(name) is None]
    return f"LIBMF's {' and '.join(absent)} is neither on PATH nor beside LIBMF_TRAIN" if absent else None


class _LibMF:
    """LIBMF's mf-train and mf-predict on text files; fitting includes writing and reading them. It takes no seed."""

    _OPTIONS: ClassVar[dict[str, str]] = {"k": "-k", "l2": "-l2", "learning_rate": "-r", "iterations": "-t"}

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        self._folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        train = task.train
        self._users, self._items = (Vocabulary.from_values(ids) for ids in (train.users, train.items))
        self._write("train", train.users, train.items, train.ratings)
        options = [str(part) for name, value in settings.items() for part in (self._OPTIONS[name], value)]
        self._run("mf-train", *options, "-s", str(task.threads), "--quiet", "train", "model")

    def _run(self, name: str, *arguments: str) -> None:
        program = libmf_program(name)
        assert program is not None
        subprocess.run([program, *arguments], cwd=self._folder, check=True, capture_output=True)

    def _write(self, name: str, users: Any, items: Any, ratings: Any) -> None:
        import pyarrow as pa
        from pyarrow import csv

        # an id that is not known becomes one beyond the model's, for which LIBMF predicts the mean
        rows, columns = self._users.encode(users), self._items.encode(items)
        rows, columns = np.where(rows < 0, len(self._users), rows), np.where(columns < 0, len(self._items), columns)
        options = csv.WriteOptions(include_header=False, delimiter=" ")
        csv.write_csv(pa.table([rows, columns, ratings], ["u", "i", "r"]), self._folder / name, options)

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        self._write("test", users, items, np.zeros(len(users)))
        self._run("mf-predict", "test", "model", "predictions")
        return np.loadtxt(self._folder / "predictions", ndmin=1)

    @functools.cached_property
    def _factors(self) -> dict[str, Scores]:
        found: dict[str, list[Any]] = {"p": [], "q": []}
        with open(self._folder / "model", encoding="utf-8") as lines:
            for line in lines:
                if line[0] in found:
                    _, known, *numbers = line.split()
                    found[line[0]].append(np.array(numbers, dtype=np.float32) * (known == "T"))
        return {side: np.stack(rows) for side, rows in found.items()}

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        scores: Scores = self._factors["p"][self._users.encode(users)] @ self._factors["q"].T
        return scores

    def details(self) -> dict[str, Any]:
        return {"peak_rss_mb": None}  # the memory is that of a program of its own


def mean_where_missing(predictions: Scores, train: Ratings) -> Scores:
    """Predictions with the mean training rating in place of NaN."""
    filled: Scores = np.where(np.isnan(predictions), train.ratings.mean(), predictions)
    return filled


_MEASURED = "earlier runs of these libraries on u1"
PEERS: tuple[Model, ...] = (
    Model(
        "surprise-svd",
        lambda task, settings: _Surprise("SVD", task, settings),
        lambda _: {
            "n_factors": Choice((16, 32, 64, 100, 128)),
            "n_epochs": Choice((20, 40, 60, 100)),
            "lr_all": Range(0.002, 0.02),
            "reg_all": Range(0.01, 0.2),
            "init_std_dev": Range(0.01, 0.2),
        },
        packages=("scikit-surprise", "numpy"),
        own=False,
        missing=_needs("surprise", "scikit-surprise"),
        sanity=Sanity({}, 0.9513, 0.006, _MEASURED),
    ),
    Model(
        "surprise-svdpp",
        lambda task, settings: _Surprise("SVDpp", task, settings),
        lambda _: {
            "n_factors": Choice((10, 20, 50)),
            "n_epochs": Choice((20, 40)),
            "lr_all": Range(0.003, 0.015),
            "reg_all": Range(0.01, 0.2),
        },
        packages=("scikit-surprise", "numpy"),
        own=False,
        missing=_needs("surprise", "scikit-surprise"),
        small_only=True,
        sanity=Sanity({}, 0.936, 0.01, "Surprise's README: .015 below its SVD on random folds"),
    ),
    Model(
        "cornac-mf",
        _Cornac,
        lambda _: {
            "k": Choice((10, 16, 32, 64, 128)),
            "max_iter": Choice((20, 50, 100, 150)),
            "learning_rate": Range(0.002, 0.02),
            "lambda_reg": Range(0.01, 0.2),
        },
        packages=("cornac", "numpy"),
        own=False,
        missing=_needs("cornac", "cornac"),
        sanity=Sanity({"k": 64, "max_iter": 150, "learning_rate": 0.005, "lambda_reg": 0.1}, 0.9192, 0.005, _MEASURED),
    ),
    Model(
        "myfm",
        _MyFM,
        lambda _: {"rank": Choice((8, 12, 16, 24, 32)), "n_iter": Choice((200, 400))},
        packages=("myfm", "numpy"),
        own=False,
        missing=_needs("myfm", "myfm"),
        sanity=Sanity({"rank": 16, "n_iter": 400}, 0.9054, 0.004, _MEASURED),
    ),
    Model(
        "libmf",
        _LibMF,
        lambda _: {
            "k": Choice((8, 16, 32, 64, 128)),
            "l2": Range(0.02, 0.3),
            "learning_rate": Range(0.02, 0.2),
            "iterations": Choice((20, 30, 50)),
        },
        packages=(),
        own=False,
        missing=_libmf_missing,
        sanity=Sanity({"k": 32, "l2": 0.12, "iterations": 25}, 0.9222, 0.006, _MEASURED),
    ),
)
