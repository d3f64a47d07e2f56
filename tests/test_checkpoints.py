"""Runs that end anywhere and are resumed: the same bits, whatever ended them; and checkpoints that are refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mfdmc_fast.checkpoints
from mfdmc_fast import MFDMC, BayesianMF, FunkMF
from mfdmc_fast.checkpoints import Checkpoint, Checkpoints, digest
from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.errors import ClustersCollapsed, ConfigError, DamagedCheckpoint, DataError, ModelFileError
from mfdmc_fast.estimator import RatingEstimator
from mfdmc_fast.tensor_files import read_tensors
from mfdmc_fast.training import Callback, EpochRecord

# clusters of users and items go, from epoch 3 on
MFDMC_SETTINGS: dict[str, Any] = {
    "n_views": 3,
    "n_clusters": 5,
    "epochs": 12,
    "prune_start": 3,
    "prune_threshold": 0.15,
    "learning_rate": 0.1,
    "backend": "cpu",
}
BEST = {"validation_fraction": 0.1, "keep": "best"}
QUICK_TEACHER = BayesianMF(rank=3, sweeps=6, burn_in=2)
MODELS: dict[str, Callable[[], RatingEstimator]] = {
    "cpu": lambda: MFDMC(**MFDMC_SETTINGS),
    "reference": lambda: MFDMC(**MFDMC_SETTINGS | {"backend": "reference"}),
    "adagrad": lambda: MFDMC(**MFDMC_SETTINGS, optimizer="adagrad"),
    "adagrad-reference": lambda: MFDMC(**MFDMC_SETTINGS | {"backend": "reference"}, optimizer="adagrad"),
    "best": lambda: MFDMC(**MFDMC_SETTINGS | {"learning_rate": 0.5}, **BEST, weight_l2=0.0),
    "patience": lambda: MFDMC(**MFDMC_SETTINGS | {"learning_rate": 0.5}, **BEST, patience=2),
    "funkmf": lambda: FunkMF(n_factors=4, epochs=8, backend="cpu"),
    "funkmf-reference": lambda: FunkMF(n_factors=4, epochs=8, backend="reference"),
    "long": lambda: MFDMC(**MFDMC_SETTINGS | {"epochs": 24}, **BEST),
    "taught": lambda: MFDMC(**MFDMC_SETTINGS, teacher=QUICK_TEACHER),
}


def planted() -> Ratings:
    return make_planted_ratings(40, 40, 700, seed=1)


class Ended(Exception):
    """What ends a run in the middle."""


class Listener(Callback):
    """Remembers what it is told, and ends a run after an epoch."""

    def __init__(self, end_after: int | None = None) -> None:
        self.end_after = end_after
        self.sweeps = 0
        self.epochs: list[int] = []
        self.resumed: list[tuple[int, str]] = []

    def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
        self.sweeps += 1

    def on_resume(self, epoch: int, source: str) -> None:
        self.resumed.append((epoch, Path(source).name))

    def on_epoch_end(self, record: EpochRecord, model: Any) -> None:
        self.epochs.append(record.epoch)
        if record.epoch == self.end_after:
            raise Ended


def fit(model: str, folder: Path | None, listener: Listener | None = None, **options: Any) -> RatingEstimator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClustersCollapsed)
        options = {"checkpoint_every": 1, "resume": True} | options if folder else options
        callbacks = [listener] if listener else []
        return MODELS[model]().fit(planted(), checkpoint_dir=folder, callbacks=callbacks, **options)


def result(model: RatingEstimator) -> tuple[list[bytes], dict[str, Any]]:
    """Every bit of the parameters, and what is remembered but the seconds."""
    history = model.history_.to_dict()
    for record in [history, *history["epochs"]]:
        for name in ("seconds", "teacher_seconds"):
            record.pop(name, None)
    sides = model.model_.prunable_sides().items()
    history["cluster_ids"] = {name: side.cluster_ids for name, side in sides}
    return [p.detach().numpy().tobytes() for p in model.model_.parameters()], history


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[str], tuple[list[bytes], dict[str, Any]]]:
    """The result of a run that nothing ended."""
    known: dict[str, tuple[list[bytes], dict[str, Any]]] = {}

    def of(model: str) -> tuple[list[bytes], dict[str, Any]]:
        if model not in known:
            known[model] = result(fit(model, None))
        return known[model]

    return of


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestResume:
    @pytest.mark.parametrize("model", sorted(set(MODELS) - {"long"}))
    def test_a_run_that_is_ended_after_every_epoch_gives_the_same_bits(
        self, tmp_path: Path, undisturbed: Any, model: str
    ) -> None:
        expected = undisturbed(model)
        last = len(expected[1]["epochs"])
        for epoch in range(1, last + 1):
            listener = Listener(end_after=epoch)
            with pytest.raises(Ended):
                fit(model, tmp_path, listener)
            # the state after the epoch that ended was not written: the callback came before
            assert listener.epochs == ([epoch - 1, epoch] if epoch > 1 else [epoch])
        assert result(fit(model, tmp_path)) == expected
        # the cases are what they claim to be
        if model in ("cpu", "reference", "adagrad", "taught"):
            assert {event["side"] for event in expected[1]["prune_events"]} == {"user", "item"}
        if model in ("best", "patience"):
            assert expected[1]["kept_epoch"] < last
        if model == "patience":
            assert "no better validation RMSE" in expected[1]["stop_reason"]

    def test_a_finished_run_returns_at_once(self, tmp_path: Path, undisturbed: Any) -> None:
        fit("taught", tmp_path)
        listener = Listener()
        again = fit("taught", tmp_path, listener)
        assert result(again) == undisturbed("taught")
        assert (listener.sweeps, listener.epochs) == (0, [])
        assert listener.resumed == [(0, "teacher.safetensors"), (12, "epoch-00012.safetensors")]

    def test_the_end_is_written_whatever_the_interval(self, tmp_path: Path) -> None:
        fit("funkmf", tmp_path, checkpoint_every="60min")
        assert files(tmp_path) == ["epoch-00008.safetensors", "lock"]

    def test_a_teacher_that_is_done_is_not_asked_again(self, tmp_path: Path, undisturbed: Any) -> None:
        with pytest.raises(Ended):
            fit("taught", tmp_path, Listener(end_after=1))
        assert files(tmp_path) == ["lock", "teacher.safetensors"]
        listener = Listener()
        assert result(fit("taught", tmp_path, listener)) == undisturbed("taught")
        assert (listener.sweeps, listener.resumed) == (0, [(0, "teacher.safetensors")])

    def test_seconds_are_those_of_all_parts(self, tmp_path: Path) -> None:
        with pytest.raises(Ended):
            fit("taught", tmp_path, Listener(end_after=6))
        _, tensors, state = read(tmp_path / "epoch-00005.safetensors")
        before, teacher = state["history"]["seconds"], read(tmp_path / "teacher.safetensors")[2]["seconds"]
        assert 0 < sum(epoch["seconds"] for epoch in state["history"]["epochs"]) <= before
        history = fit("taught", tmp_path).history_
        assert history.teacher_seconds == teacher
        assert history.seconds >= before + teacher + sum(epoch.seconds for epoch in history.epochs[5:])
        assert tensors["model.user.centers"].dtype == torch.float32

    @pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (2, [6, 8]), (3, [3, 6, 8])])
    def test_the_last_few_stay(self, tmp_path: Path, keep: int, kept: list[int]) -> None:
        fit("funkmf", tmp_path, checkpoint_every="3", checkpoint_keep=keep)
        assert files(tmp_path) == [*(f"epoch-{epoch:05d}.safetensors" for epoch in kept), "lock"]

    def test_minutes_are_counted_from_the_last_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr(mfdmc_fast.checkpoints.time, "monotonic", lambda: now[0])
        with Checkpoints(tmp_path, every="0.5min") as checkpoints:
            now[0] += 29.9
            assert not checkpoints.due(7)
            now[0] += 0.2
            assert checkpoints.due(7)
            checkpoints.save_epoch(7, {}, {"x": torch.zeros(1)})
            assert not checkpoints.due(8)
            now[0] += 30
            assert checkpoints.due(9)


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    metadata, tensors = read_tensors(path, sealed=True)
    header = json.loads(metadata["mfdmc_fast_checkpoint"])
    return header["identity"], tensors, header["state"]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Where children come from that have imported everything, also what a torch optimizer loads in a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "mfdmc_fast.estimator", "safetensors.torch", "test_checkpoints"])
    return context


def train_in_child(model: str, folder: Path, out: Path, started: Any, kill_at: tuple[str, int] | None = None) -> None:
    """Train, write the model; where asked for, die at the n-th call of a function while a checkpoint is written."""
    torch.set_num_threads(1)
    if kill_at is not None:
        die_at(*kill_at)
    started.set()
    fit(model, folder).save(out)


def die_at(function: str, call: int) -> None:
    import safetensors.torch

    home: Any = safetensors.torch if function == "save_file" else os
    original, calls = getattr(home, function), [0]

    def dying(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            if function == "save_file":  # with a part of the content
                Path(arguments[1]).write_bytes(b"\x10\x00\x00")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(home, function, dying)


def assert_same_file(out: Path, expected: tuple[list[bytes], dict[str, Any]], model: str) -> None:
    loaded = type(MODELS[model]()).load(out)
    assert result(loaded) == expected


class TestKilled:
    @pytest.mark.parametrize(("model", "kills"), [("long", 20), ("reference", 5), ("taught", 5), ("funkmf", 5)])
    def test_at_random_moments(
        self, tmp_path: Path, server: ForkServerContext, undisturbed: Any, model: str, kills: int
    ) -> None:
        chance = random.Random(model)
        folder, out = tmp_path / "checkpoints", tmp_path / "model.safetensors"

        def start() -> Any:
            started = server.Event()
            child = server.Process(target=train_in_child, args=(model, folder, out, started))
            child.start()
            assert started.wait(60)
            return child

        def finish(child: Any) -> None:
            child.join(60)
            assert child.exitcode == 0
            assert_same_file(out, undisturbed(model), model)
            assert not [name for name in files(folder) if name.endswith(".tmp")]
            shutil.rmtree(folder)
            out.unlink()

        whole, began = start(), time.monotonic()
        whole.join(60)
        seconds = time.monotonic() - began
        finish(whole)
        killed, resumed = 0, 0
        while killed < kills:
            resumed += folder.exists() and any(name.startswith("epoch") for name in files(folder))
            child = start()
            time.sleep(chance.uniform(0, 0.8 * seconds))
            child.kill()
            child.join(60)
            killed += child.exitcode == -signal.SIGKILL
            if child.exitcode == 0:  # it was done already: the next begins another run
                finish(child)
        finish(start())
        assert resumed >= kills / 5  # many of them had something to continue from

    @pytest.mark.parametrize(
        ("function", "call"),
        [("save_file", 1), ("save_file", 4), ("fsync", 7), ("fsync", 8), ("replace", 4), ("chmod", 4), ("unlink", 2)],
        ids=str,
    )
    def test_while_a_checkpoint_is_written(
        self, tmp_path: Path, server: ForkServerContext, undisturbed: Any, function: str, call: int
    ) -> None:
        folder, out = tmp_path / "checkpoints", tmp_path / "model.safetensors"
        for kill_at, status in (((function, call), -signal.SIGKILL), (None, 0)):
            started = server.Event()
            child = server.Process(target=train_in_child, args=("cpu", folder, out, started, kill_at))
            child.start()
            child.join(60)
            assert child.exitcode == status
        assert_same_file(out, undisturbed("cpu"), "cpu")
        assert files(folder) == ["epoch-00011.safetensors", "epoch-00012.safetensors", "lock"]


def flip(path: Path, position: int) -> None:
    with open(path, "rb+") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << position % 8)]))


class TestDamaged:
    @pytest.fixture(scope="class")
    @staticmethod
    def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder of a taught run that ended in epoch 6; not to be changed."""
        folder = tmp_path_factory.mktemp("ended") / "checkpoints"
        with pytest.raises(Ended):
            fit("taught", folder, Listener(end_after=6))
        assert files(folder) == ["epoch-00004.safetensors", "epoch-00005.safetensors", "lock", "teacher.safetensors"]
        return folder

    @pytest.fixture
    def folder(self, ended: Path, tmp_path: Path) -> Path:
        """A copy of it."""
        return Path(shutil.copytree(ended, tmp_path / "checkpoints"))

    def test_every_changed_byte_is_seen(self, tmp_path: Path) -> None:
        with Checkpoints(tmp_path) as checkpoints:
            tensors = {"a": torch.arange(6.0), "b": torch.arange(5, dtype=torch.int32), "c": torch.tensor(3.0)}
            checkpoints.save("teacher", {"seconds": 1.5}, tensors)
        path = tmp_path / "teacher.safetensors"
        whole = path.read_bytes()
        read_tensors(path, sealed=True)
        for position in range(len(whole)):
            flip(path, position)
            with pytest.raises(ModelFileError, match=r"damaged|truncated"):
                read_tensors(path, sealed=True)
            flip(path, position)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelFileError, match=r"damaged|truncated"):
                read_tensors(path, sealed=True)
        path.write_bytes(whole + b"\0")
        with pytest.raises(ModelFileError, match="damaged"):
            read_tensors(path, sealed=True)

    def test_every_region_of_a_real_one_is_covered(self, folder: Path, tmp_path: Path) -> None:
        path = folder / "epoch-00005.safetensors"
        size = path.stat().st_size
        assert size > 20_000
        for position in range(0, size, 251):
            flip(path, position)
            with pytest.raises(ModelFileError, match=r"damaged|truncated"):
                read_tensors(path, sealed=True)
            flip(path, position)
        read_tensors(path, sealed=True)

    @pytest.mark.parametrize(
        ("damaged", "continued"),
        [
            (["epoch-00005"], [(0, "teacher.safetensors"), (4, "epoch-00004.safetensors")]),
            (["epoch-00005", "epoch-00004"], [(0, "teacher.safetensors")]),
            (["teacher"], [(5, "epoch-00005.safetensors")]),
            (["teacher", "epoch-00005", "epoch-00004"], []),
        ],
        ids=["the-last", "all-epochs", "the-teacher", "everything"],
    )
    def test_what_can_be_read_is_continued(
        self, folder: Path, undisturbed: Any, damaged: list[str], continued: list[tuple[int, str]]
    ) -> None:
        for k, name in enumerate(damaged):
            path = folder / f"{name}.safetensors"
            flip(path, path.stat().st_size * (k + 1) // (len(damaged) + 1))
        listener = Listener()
        with pytest.warns(DamagedCheckpoint, match=r"its checksum does not fit.*passed over") as caught:
            model = fit("taught", folder, listener)
        named = [Path(str(w.message).partition(":")[0]).stem for w in caught if w.category is DamagedCheckpoint]
        assert sorted(named) == sorted(damaged)
        assert listener.resumed == continued
        assert listener.sweeps == (QUICK_TEACHER.sweeps if "teacher" in damaged else 0)
        assert result(model) == undisturbed("taught")

    def test_a_damaged_one_does_not_stand_in_the_way_of_the_next(self, folder: Path) -> None:
        (folder / "epoch-00099.safetensors").write_bytes(b"nothing")
        with pytest.warns(DamagedCheckpoint, match="epoch-00099"), pytest.raises(Ended):
            fit("taught", folder, Listener(end_after=7))
        assert [name for name in files(folder) if "epoch" in name] == [
            "epoch-00005.safetensors",
            "epoch-00006.safetensors",
        ]

    def test_another_safetensors_file_is_passed_over(self, folder: Path, tmp_path: Path) -> None:
        fit("funkmf", None).save(folder / "epoch-00005.safetensors")
        with pytest.warns(DamagedCheckpoint, match="epoch-00005.*has no checksum"):
            fit("taught", folder)


def run_out_of_room(folder: Path, message: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        fit("cpu", folder)
    except DataError as error:
        message.write_text(str(error), encoding="utf-8")


class TestWriting:
    def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(
        self, tmp_path: Path, server: ForkServerContext, undisturbed: Any
    ) -> None:
        folder = tmp_path / "checkpoints"
        with pytest.raises(Ended):
            fit("cpu", folder, Listener(end_after=6))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        child = server.Process(target=run_out_of_room, args=(folder, tmp_path / "message"))
        child.start()
        child.join(60)
        said = (tmp_path / "message").read_text(encoding="utf-8")
        assert "epoch-00006.safetensors: cannot be written" in said
        assert "The checkpoints before it are intact" in said
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert result(fit("cpu", folder)) == undisturbed("cpu")

    def test_no_room_at_the_end_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Ended):
            fit("cpu", tmp_path, Listener(end_after=3))

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DataError, match=r"epoch-00003.*cannot be written: No space left on device"):
                fit("cpu", tmp_path)
        assert files(tmp_path) == ["epoch-00001.safetensors", "epoch-00002.safetensors", "lock"]

    def test_a_folder_that_cannot_be_made_or_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file: is not a folder"):
            fit("cpu", tmp_path / "file")
        with pytest.raises(DataError, match="no checkpoints can be written: Not a directory"):
            fit("cpu", tmp_path / "file" / "below")
        # the superuser may write everywhere, so the answer of the system is put in its mouth
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(DataError, match="the folder cannot be written; give another one for checkpoints"):
            fit("cpu", tmp_path)

    def test_a_folder_belongs_to_one_process(self, tmp_path: Path) -> None:
        with (
            Checkpoints(tmp_path / "deep" / "folder"),
            pytest.raises(ConfigError, match="another process is training with this folder"),
        ):
            fit("cpu", tmp_path / "deep" / "folder")
        fit("cpu", tmp_path / "deep" / "folder")

    def test_what_a_killed_process_left_is_cleared_and_nothing_else(self, tmp_path: Path) -> None:
        for name in (".epoch-00003.safetensors.x1.tmp", ".teacher.safetensors.x2.tmp", "notes.tmp", "epoch-9.txt"):
            (tmp_path / name).touch()
        with Checkpoints(tmp_path):
            assert files(tmp_path) == ["epoch-9.txt", "lock", "notes.tmp"]


def other_ratings(**changes: Any) -> Ratings:
    ratings = planted()
    values = {"users": ratings.users, "items": ratings.items, "ratings": ratings.ratings.copy()} | changes
    return Ratings(**values)


class TestRefused:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """Of a run that ended after two epochs; at the end as it was at the beginning."""
        folder = tmp_path_factory.mktemp("other")
        with pytest.raises(Ended):
            MFDMC(**MFDMC_SETTINGS).fit(
                planted(), checkpoint_dir=folder, checkpoint_every=1, callbacks=[Listener(end_after=3)]
            )
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"epochs": 13}, "epochs was 12 and is 13"),
            ({"seed": 5, "n_views": 2}, "seed was 0 and is 5; n_views was 3 and is 2"),
            ({"patience": 3, "validation_fraction": 0.1}, "validation ratings changed"),
            ({"learning_rate_schedule": "constant"}, "learning_rate_schedule was 'cosine' and is 'constant'"),
            ({"backend": "reference"}, "backend was 'cpu' and is 'reference'"),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_other_settings(self, folder: Path, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=f"epoch-00002.safetensors: belongs to another run: .*{said}"):
            MFDMC(**MFDMC_SETTINGS | settings).fit(planted(), checkpoint_dir=folder, resume=True)

    def test_another_model(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="model was 'MFDMC' and is 'FunkMF'"):
            fit("funkmf", folder)

    @pytest.mark.parametrize(
        ("changes", "options", "said"),
        [
            ({"users": planted().users + 1}, {}, "user ids changed"),
            ({"items": np.char.add("i", planted().items.astype(str)).astype(object)}, {}, "item ids changed"),
            ({"ratings": np.where(np.arange(700) == 5, 1.25, planted().ratings)}, {}, "what it was trained on changed"),
            ({}, {"validation": planted()}, "validation ratings changed"),
            ({}, {"rating_scale": (0.0, 5.0)}, r"rating scale was \[1.0, 5.0\] and is \[0.0, 5.0\]"),
        ],
        ids=["users", "items", "ratings", "validation", "scale"],
    )
    def test_other_data(self, folder: Path, changes: Any, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=f"belongs to another run: .*{said}"):
            MFDMC(**MFDMC_SETTINGS).fit(other_ratings(**changes), checkpoint_dir=folder, resume=True, **options)

    def test_another_version(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mfdmc_fast.checkpoints, "__version__", "99.0")
        with pytest.raises(ConfigError, match=r"version of mfdmc_fast was '.*' and is '99.0'"):
            fit("cpu", folder)

    def test_checkpoints_are_not_overwritten(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="holds the state after epoch 2: continue that run with resume, or"):
            fit("cpu", folder, resume=False)

    @pytest.mark.parametrize(
        "teacher",
        [BayesianMF(rank=4, sweeps=6, burn_in=2), FunkMF(epochs=1), [QUICK_TEACHER, QUICK_TEACHER], "bayesian"],
        ids=["settings", "kind", "list", "named"],
    )
    def test_another_teacher(self, tmp_path: Path, teacher: Any) -> None:
        with pytest.raises(Ended):
            fit("taught", tmp_path, Listener(end_after=1))
        with pytest.raises(ConfigError, match=r"teacher.safetensors: belongs to another run: .*teacher"):
            MFDMC(**MFDMC_SETTINGS, teacher=teacher).fit(planted(), checkpoint_dir=tmp_path, resume=True)

    def test_a_fitted_teacher_is_known_by_its_parameters_and_a_file_by_its_content(self, tmp_path: Path) -> None:
        path = tmp_path / "teacher.safetensors"
        for teacher in (lambda: FunkMF.load(path), lambda: str(path)):
            FunkMF(epochs=1).fit(planted()).save(path)
            folder = tmp_path / type(teacher()).__name__

            def taught(folder: Path = folder, teacher: Any = teacher) -> None:
                MFDMC(**MFDMC_SETTINGS, teacher=teacher()).fit(planted(), checkpoint_dir=folder, resume=True)

            taught()
            taught()
            FunkMF(epochs=2).fit(planted()).save(path)
            with pytest.raises(ConfigError, match="belongs to another run: teacher changed"):
                taught()

    def test_bayesian_models_keep_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="BayesianMF keeps no checkpoints"):
            QUICK_TEACHER.fit(planted(), checkpoint_dir=tmp_path / "checkpoints")
        assert files(tmp_path) == []

    @pytest.mark.parametrize("every", [0, -3, 1.5, True, "5s", "min", "0min", "nanmin", "infmin", "1.5", ""])
    def test_an_interval_that_is_none(self, tmp_path: Path, every: Any) -> None:
        with pytest.raises(ConfigError, match="write epochs such as 5, or minutes such as 10min"):
            fit("cpu", tmp_path, checkpoint_every=every)

    @pytest.mark.parametrize("keep", [0, -1, 1.5, True])
    def test_a_number_to_keep_that_is_none(self, tmp_path: Path, keep: Any) -> None:
        with pytest.raises(ConfigError, match=r"checkpoint_keep = .*must be 1 or more"):
            fit("cpu", tmp_path, checkpoint_keep=keep)

    @pytest.mark.parametrize("options", [{"resume": True}, {"checkpoint_every": 5}, {"checkpoint_keep": 5}], ids=str)
    def test_options_without_a_folder(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is of use only with checkpoint_dir"):
            fit("cpu", None, **options)


def test_a_digest_tells_arrays_apart() -> None:
    arrays: list[list[np.ndarray[Any, Any]]] = [
        [],
        [np.zeros(0)],
        [np.zeros(2)],
        [np.zeros(2), np.zeros(0)],
        [np.zeros(2, dtype=np.float32)],
        [np.zeros((1, 2))],
        [np.zeros(1), np.zeros(1)],
        [np.array([0.0, -0.0])],
    ]
    assert len({digest(one) for one in arrays}) == len(arrays)
    assert digest([np.arange(6)[::2]]) == digest([np.array([0, 2, 4])])


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, resume=True) as checkpoints:
        assert checkpoints.last() is None
        tensors = {"x": torch.randn(3, 2), "n": torch.arange(4, dtype=torch.int32), "step": torch.tensor(2.0)}
        checkpoints.identify(seed=1)
        checkpoints.save_epoch(3, {"loss": 0.1 + 0.2}, tensors)
        found = checkpoints.last()
    assert isinstance(found, Checkpoint)
    assert (found.path, found.state) == (tmp_path / "epoch-00003.safetensors", {"loss": 0.1 + 0.2})
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
