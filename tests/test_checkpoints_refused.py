"""Checkpoints that are damaged are passed over, those of other runs refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    MFDMC_SETTINGS,
    QUICK_TEACHER,
    Ended,
    Listener,
    files,
    fit,
    planted,
    result,
    undisturbed,
)

import mfdmc_fast.checkpoints
from mfdmc_fast import MFDMC, BayesianMF, FunkMF
from mfdmc_fast.checkpoints import Checkpoints
from mfdmc_fast.data import Ratings
from mfdmc_fast.errors import ConfigError, DamagedCheckpoint, ModelFileError
from mfdmc_fast.tensor_files import read_tensors


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
        self, folder: Path, damaged: list[str], continued: list[tuple[int, str]]
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
