"""What is fuzzed: functions that read a file, each with valid files to start from."""

from __future__ import annotations

import gzip
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from mfdmc_fast import MFDMC, BayesianMF, FunkMF
from mfdmc_fast.checkpoints import Checkpoints
from mfdmc_fast.cli.options import ModelOptions
from mfdmc_fast.data import make_planted_ratings, read_features, read_pairs, read_ratings
from mfdmc_fast.errors import ConfigError, DamagedCheckpoint, MFDMCError, ModelFileError, TrainingDiverged
from mfdmc_fast.estimator import RatingEstimator
from mfdmc_fast.estimator.base import load_model
from mfdmc_fast.tensor_files import _checksums

# what a single case may take beyond what the process has
MOST_SECONDS, MOST_MB = 5.0, 300.0


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        file_name: what its files are called; readers look at the end of it.
        read: reads a file, and uses what was read; returns the warning where the file is passed over.
        seeds: valid files.
        sealed: give files a checksum that fits, so that what is beneath is reached.
    """

    file_name: str
    read: Callable[[Path], str | None]
    seeds: list[bytes]
    sealed: bool = False

    def run(self, data: bytes, folder: Path) -> str | None:
        """Read a file of these bytes; what the package says if it is refused or passed over. Whatever else is raised
        is a finding, and so are words that do not name the file.
        """
        path = folder / self.file_name
        path.write_bytes(data)
        if self.sealed:
            _seal(path)
        try:
            refused = self.read(path)
        except MFDMCError as error:
            refused = str(error)
        assert refused is None or path.name in refused, f"does not name the file: {refused}"
        return refused


def targets() -> dict[str, Target]:
    """All targets by name; their valid files are the same every time, as the seconds in them are not measured."""
    ticks = itertools.count()
    with patch("time.perf_counter", lambda: next(ticks) / 4):
        return _targets()


def _targets() -> dict[str, Target]:
    text = [
        b"user_id,item_id,rating,timestamp\n1,2,3.5,10\n4,5,1,11\n1,5,2,12\n",
        b"\xef\xbb\xbfa::b::4\nb::c::5\nc::a::1\n",
        b'"x ""y""","1\n2",3\nz,w,4\nz,v,5\n',
        "é\tü\t1\nß\t7\t2\n".encode("latin-1"),
        b"1 2 3\r\n4  5 6\r\n\r\n 7 8 9",
    ]
    labels = [
        b"item_id,title,genres,year,is_new\n1,Toy (1995),a|b,1995-01-01,1\n2,B (1996),b,1996-02-03,0\n3,C,a,1997,1\n",
        b"1|24|M|technician|85711\n2|53|F|other|94043\n3|23|M|writer|32067\n",
    ]
    models = _models()
    return {
        "ratings": Target("r.csv", _read_ratings, text),
        "pairs": Target("p.txt", _read_pairs, text),
        "delimited": Target(
            "d.txt", _read_delimited, [b"\1~" + text[0].replace(b",", b"~"), b"\3\xe2\x82\xac1\xe2\x82\xac2"]
        ),
        "features": Target("u.user", _read_features, labels + text),
        "gzip": Target("r.csv.gz", _read_ratings, [gzip.compress(one) for one in text + labels]),
        "parquet": Target("r.parquet", _read_table, _tables("parquet")),
        "arrow": Target("r.arrow", _read_table, _tables("arrow")),
        "settings": Target(
            "s.toml",
            _read_settings,
            [b'model = "mfdmc"\nn_views = 4\nweight_l2 = "0:0.1:30"\n', b"model = 'funkmf'\nseed = 1\nbiases = true\n"],
        ),
        "model": Target("m.safetensors", _use_model, models),
        "checkpoint": Target("epoch-00001.safetensors", _read_checkpoint, _checkpoint()),
        **{f"resume-{name}": _resumed(_RUNS[name], "epoch-00002") for name in _RUNS},
        "resume-teacher": _resumed(lambda: MFDMC(**_SMALL, teacher=BayesianMF(rank=2, sweeps=2, burn_in=1)), "teacher"),
    }


# clusters go after the first epoch
_SMALL: dict[str, Any] = {"epochs": 3, "n_views": 2, "n_clusters": 3, "view_dim": 2, "prune_start": 1}
_SMALL |= {"prune_threshold": 0.33}
_RUNS: dict[str, Callable[[], RatingEstimator]] = {
    "cpu": lambda: MFDMC(**_SMALL, validation_fraction=0.2, keep="best"),
    "adagrad": lambda: MFDMC(**_SMALL, optimizer="adagrad"),
    "reference": lambda: FunkMF(epochs=3, n_factors=3, backend="reference"),
}


def _read_ratings(path: Path) -> None:
    for policy in ("error", "skip"):
        read_ratings(path, on_bad_row=policy)  # type: ignore[arg-type]


def _read_pairs(path: Path) -> None:
    read_pairs(path)


def _read_delimited(path: Path) -> None:
    """A file that says, in front of its text, how many bytes its delimiter has, and the delimiter."""
    data = path.read_bytes()
    n = data[0] if data else 0
    path.write_bytes(data[1 + n :])
    try:
        read_pairs(path, delimiter=data[1 : 1 + n].decode("utf-8", "surrogateescape"))
    except ConfigError as error:  # it names the option
        raise ConfigError(f"{path}: {error}") from error


def _read_features(path: Path) -> None:
    features = read_features(path, labels_needed=False)
    assert all(len(block.rows) == len(block.label_idx) for block in features.blocks)


def _read_table(path: Path) -> None:
    refused = None
    for read in (_read_ratings, read_pairs, _read_features):
        try:
            read(path)
        except MFDMCError as error:
            refused = error
    if refused is not None:
        raise refused


def _read_settings(path: Path) -> None:
    try:
        options = ModelOptions({"config": path})
        options.estimator()
        options.seed  # noqa: B018
    except MFDMCError as error:
        # a wrong value names its setting, not the file
        raise type(error)(f"{path}: {error}") from error.__cause__


def _use_model(path: Path) -> None:
    model = load_model(path)
    if len(model.users_) and len(model.items_):
        users, items = model.users_.ids[:2], model.items_.ids[:2]
        predictions = model.predict(users[[0, -1]], items[[0, -1]])
        assert np.isfinite(predictions).all()
        model.recommend(model.users_.ids[0], n=3)


def _read_checkpoint(path: Path) -> str | None:
    checkpoints = Checkpoints(path.parent, resume=True)
    checkpoints.identify(of="a test")
    with _damage_told() as told:
        checkpoints.load(path.stem, lambda found: None)
    return told[0] if told else None


@contextmanager
def _damage_told() -> Iterator[list[str]]:
    """Yields a list that has, at the end, what was said of damaged checkpoints."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedCheckpoint)
        yield told
    told += [str(warning.message) for warning in caught if warning.category is DamagedCheckpoint]


def _seal(path: Path) -> None:
    """Write the checksum that fits into a file that has a place for one."""
    try:
        position, _, checksum = _checksums(path)
    except ModelFileError:
        return
    with open(path, "rb+") as file:
        file.seek(position)
        file.write(checksum)


def _resumed(make: Callable[[], RatingEstimator], name: str) -> Target:
    """Continuing a run from a checkpoint. Where it is passed over, the run ends as if it were not there.

    Args:
        make: the model.
        name: of the file, beside which there is the state after the first epoch.
    """
    ratings = make_planted_ratings(n_users=16, n_items=12, n_ratings=90, seed=1)

    def parameters(folder: Path) -> dict[str, bytes]:
        model = make().fit(ratings, checkpoint_dir=folder, checkpoint_every=1, checkpoint_keep=3, resume=True)
        values = {key: p.detach().numpy() for key, p in model.model_.named_parameters()}
        assert all(np.isfinite(value).all() for value in values.values())
        return {key: value.tobytes() for key, value in values.items()}

    with tempfile.TemporaryDirectory() as folder:
        undisturbed = parameters(Path(folder))
        kept = {file: (Path(folder) / f"{file}.safetensors").read_bytes() for file in ("epoch-00001", name)}

    def read(path: Path) -> str | None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, _damage_told() as told:
            run = Path(folder)
            if name != "teacher":  # which a later state would make of no use
                (run / "epoch-00001.safetensors").write_bytes(kept["epoch-00001"])
            (run / path.name).write_bytes(path.read_bytes())
            try:
                found = parameters(run)
            except TrainingDiverged as error:  # of numbers that are large, but may be
                return f"{path.name}: {error}"
        if told:
            assert found == undisturbed, "it was passed over, and the result is another"
        return told[0] if told else None

    return Target(f"{name}.safetensors", read, [kept[name]], sealed=True)


def _tables(kind: str) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "user_id": pa.array(["a", "b", "c"]).dictionary_encode(),
            "item_id": pa.array([1, 2, 3]),
            "rating": [1.0, 2.5, 5.0],
            "timestamp": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
            "labels": [["x"], ["x", "y"], []],
        }
    )
    files = []
    for compression in (None, "zstd"):
        sink = pa.BufferOutputStream()
        if kind == "parquet":
            pq.write_table(table, sink, compression=compression or "none")
        else:
            opened = pa.ipc.new_file if compression else pa.ipc.new_stream
            with opened(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table)
        files.append(sink.getvalue().to_pybytes())
    return files


def _models() -> list[bytes]:
    ratings = make_planted_ratings(n_users=16, n_items=12, n_ratings=90, seed=1)
    words = ratings.take(np.arange(80))
    object.__setattr__(words, "users", np.array([f"u{user}é" for user in words.users], dtype=object))
    small: dict[str, Any] = {"epochs": 2, "n_views": 2, "n_clusters": 3, "view_dim": 2, "prune_start": 1}
    fitted = [
        MFDMC(**small).fit(ratings),
        FunkMF(epochs=1, n_factors=2).fit(words),
        BayesianMF(rank=2, sweeps=3, burn_in=1, n_draws=2).fit(ratings),
    ]
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for model in fitted:
            path = Path(folder) / "model.safetensors"
            model.save(path)
            files.append(path.read_bytes())
    return files


def _checkpoint() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.identify(of="a test")
        checkpoints.save_epoch(1, {"epoch": 1}, {"model.x": torch.ones(3)})
        return [(Path(folder) / "epoch-00001.safetensors").read_bytes()]
