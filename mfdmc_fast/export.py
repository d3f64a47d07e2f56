"""A model for other programs: vectors and ids as Parquet or npy, a FAISS index, the scorer as an ONNX graph.

The vectors hold the biases, so that a plain inner product ranks items as `recommend` does:

    user vector = [z_u, 1]    item vector = [z_i, b_i]    rating(u, i) = their inner product + constant_u,

clipped to the rating scale, where constant_u = global mean + b_u. Models without biases have z alone and constant 0.
FAISS and ONNX need `pip install 'mfdmc_fast[export]'`.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast import __version__
from mfdmc_fast.data import Vocabulary
from mfdmc_fast.errors import ConfigError, DataError, MFDMCError
from mfdmc_fast.estimator import BayesianMF, RatingEstimator
from mfdmc_fast.files import alone_in, check_writable, replacing
from mfdmc_fast.ops import functional

FORMAT_VERSION = 1
Format = Literal["parquet", "npy"]
Index = Literal["flat", "hnsw"]
# users whose exact best items are compared with what an index finds, and pairs that an ONNX graph is tried on
_USERS_CHECKED = 1000
_PAIRS_CHECKED = 1000
_ONNX_TOLERANCE = 1e-5


class Vectors(NamedTuple):
    """The vectors of a model.

    Attributes:
        users: [n_users, D] float32.
        items: [n_items, D] float32.
        constants: [n_users] float32, rating points.
    """

    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    constants: npt.NDArray[np.float32]


def vectors(estimator: RatingEstimator) -> Vectors:
    """The vectors of a fitted estimator; rows are those of `users_` and `items_`."""
    model = estimator._state().model
    users, items = (model.embeddings(side).float().cpu().numpy() for side in ("user", "item"))
    constants = np.full(len(users), model.global_mean, dtype=np.float32)
    user_bias, item_bias = model.bias("user"), model.bias("item")
    if user_bias is not None and item_bias is not None:
        users = np.column_stack([users, np.ones(len(users), dtype=np.float32)])
        items = np.column_stack([items, item_bias.float().cpu().numpy()])
        constants += user_bias.float().cpu().numpy()
    return Vectors(np.ascontiguousarray(users), np.ascontiguousarray(items), constants)


def export(
    estimator: RatingEstimator,
    folder: str | os.PathLike[str],
    *,
    format: Format = "parquet",
    faiss: Index | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write a fitted estimator's vectors, ids and a manifest into a folder, which is made if it is not there.

    Args:
        estimator: fitted.
        folder: where to; files of the same names are replaced, each only when it is complete. The manifest is written
            last, and an older one removed first: where there is one, all files belong to it.
        format: `parquet`: users.parquet (id, embedding, constant) and items.parquet (id, embedding); `npy`:
            user_vectors.npy, user_ids.npy, user_constants.npy, item_vectors.npy, item_ids.npy. Both in row order.
        faiss: also items.faiss, a FAISS index of the item vectors: `flat` is exact, `hnsw` faster with many items. The
            manifest says how many of the exact 10 best items of a user it finds.
        onnx: also scorer.onnx: `user_rows` and `item_rows`, [B] int64, to `ratings`, [B] float32. It is run on some
            pairs and compared with `predict`.

    Returns:
        The manifest, as manifest.json holds it.

    Raises:
        ConfigError: a package is missing, or a Bayesian model as ONNX. DataError: the folder cannot be written, or
        another process is exporting to it.
    """
    if format not in ("parquet", "npy"):
        raise ConfigError(f"format = {format!r}: must be parquet or npy")
    if faiss not in (None, "flat", "hnsw"):
        raise ConfigError(f"faiss = {faiss!r}: must be flat or hnsw")
    if onnx and isinstance(estimator, BayesianMF):
        raise ConfigError(
            "a Bayesian model clips the prediction of every draw, which the ONNX graph does not; export an MFDMC that"
            " learned from it (teacher='bayesian')"
        )
    for name in (["faiss"] if faiss else []) + (["onnx", "onnxruntime"] if onnx else []):
        _import(name)
    estimator._state()  # raises where it is not fitted
    target = Path(folder)
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be made a folder: {error.strerror}", source=str(target)) from error
    with alone_in(target):
        path = target / "manifest.json"
        check_writable(path)
        path.unlink(missing_ok=True)  # an older one, of files that are replaced now
        manifest = _write_parts(estimator, target, format, faiss, onnx)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_parts(
    estimator: RatingEstimator, target: Path, format: Format, faiss: Index | None, onnx: bool
) -> dict[str, Any]:
    """Write everything but the manifest, which is returned."""
    state, found = estimator._state(), vectors(estimator)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "kind": state.kind,
        "users": len(found.users),
        "items": len(found.items),
        "dimension": found.items.shape[1],
        "similarity": "inner product",
        "rating": "inner product of user and item vector + constant of the user, clipped to rating_scale",
        "rating_scale": list(state.rating_scale),
    }
    write = _write_parquet if format == "parquet" else _write_npy
    manifest["files"] = write(target, found, state.users, state.items)
    if faiss:
        index = faiss_index(found.items, faiss)
        with replacing(target / "items.faiss") as temporary:
            _import("faiss").write_index(index, str(temporary))
        manifest["files"].append("items.faiss")
        manifest["faiss"] = {"index": faiss, "recall_at_10": recall(index, found, 10)}
    if onnx:
        graph = onnx_scorer(found, state.rating_scale)
        manifest["onnx"] = {"largest_difference": _onnx_difference(graph, estimator)}
        with replacing(target / "scorer.onnx") as temporary:
            temporary.write_bytes(graph)
        manifest["files"].append("scorer.onnx")
    return manifest


def faiss_index(items: npt.NDArray[np.float32], kind: Index) -> Any:
    """A FAISS index by inner product of item vectors [n_items, D]; positions in it are rows of items."""
    faiss = _import("faiss")
    if kind == "flat":
        index = faiss.IndexFlatIP(items.shape[1])
    else:
        index = faiss.IndexHNSWFlat(items.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    index.add(items)
    return index


def recall(index: Any, found: Vectors, n: int) -> float:
    """Share of the exact n best items of a user that an index finds, over up to 1,000 users evenly spread."""
    chosen = np.unique(np.linspace(0, len(found.users) - 1, _USERS_CHECKED).astype(np.int64))
    users = found.users[chosen]
    exact = functional.top_items(torch.from_numpy(users), torch.from_numpy(found.items), None, n)[0].numpy()
    _, near = index.search(users, exact.shape[1])
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, near, strict=True)]))


def onnx_scorer(found: Vectors, scale: tuple[float, float]) -> bytes:
    """The scorer as a serialized ONNX graph; see `export`."""
    onnx = _import("onnx")
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    constants = {
        "user_vectors": found.users,
        "item_vectors": found.items,
        "user_constants": found.constants,
        "low": np.float32(scale[0]),
        "high": np.float32(scale[1]),
        "last_axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["user_vectors", "user_rows"], ["users"]),
        helper.make_node("Gather", ["item_vectors", "item_rows"], ["items"]),
        helper.make_node("Gather", ["user_constants", "user_rows"], ["constants"]),
        helper.make_node("Mul", ["users", "items"], ["products"]),
        helper.make_node("ReduceSum", ["products", "last_axis"], ["inner_products"], keepdims=0),
        helper.make_node("Add", ["inner_products", "constants"], ["unclipped"]),
        helper.make_node("Clip", ["unclipped", "low", "high"], ["ratings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mfdmc_fast_scorer",
        [helper.make_tensor_value_info(name, kinds.INT64, ["pairs"]) for name in ("user_rows", "item_rows")],
        [helper.make_tensor_value_info("ratings", kinds.FLOAT, ["pairs"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    # operators as of ONNX 1.8 (opset 13), which every runtime of the last years knows
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="mfdmc_fast"
    )
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def _onnx_difference(graph: bytes, estimator: RatingEstimator) -> float:
    """The largest difference between a graph's ratings and those of `predict`, over some pairs; raises if too large."""
    session = _import("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    users, items = (
        generator.integers(len(vocabulary), size=_PAIRS_CHECKED) for vocabulary in (estimator.users_, estimator.items_)
    )
    (ratings,) = session.run(None, {"user_rows": users, "item_rows": items})
    predictions = estimator.predict(estimator.users_.decode(users), estimator.items_.decode(items))
    difference = float(np.abs(ratings - predictions).max())
    if not difference <= _ONNX_TOLERANCE * max(1.0, *map(abs, estimator.rating_scale_)):
        raise MFDMCError(f"the ONNX graph differs from predict by {difference:g}; please report this as a bug")
    return difference


def _write_parquet(folder: Path, found: Vectors, users: Vocabulary, items: Vocabulary) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(matrix: npt.NDArray[np.float32]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])

    tables = {
        "users.parquet": {
            "id": pa.array(users.ids.tolist()),
            "embedding": column(found.users),
            "constant": pa.array(found.constants),
        },
        "items.parquet": {"id": pa.array(items.ids.tolist()), "embedding": column(found.items)},
    }
    for name, columns in tables.items():
        with replacing(folder / name) as temporary:
            pq.write_table(pa.table(columns), temporary)
    return list(tables)


def _write_npy(folder: Path, found: Vectors, users: Vocabulary, items: Vocabulary) -> list[str]:
    arrays = {
        "user_vectors.npy": found.users,
        # of fixed width, as arrays of Python strings would be pickled
        "user_ids.npy": users.ids if users.kind == "int" else users.ids.astype(str),
        "user_constants.npy": found.constants,
        "item_vectors.npy": found.items,
        "item_ids.npy": items.ids if items.kind == "int" else items.ids.astype(str),
    }
    for name, array in arrays.items():
        with replacing(folder / name) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    return list(arrays)


def _import(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            # of the interpreter, about how some of these packages were made
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed; pip install 'mfdmc_fast[export]'") from error
