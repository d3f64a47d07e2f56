"""`mfdmc prepare`, and stores in the commands that take ratings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pexpect
import pytest
from cli_tools import ENVIRONMENT, mfdmc, table, write_csv

from mfdmc_fast import memory
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import Store, make_planted_ratings
from mfdmc_fast.memory import training_memory
from mfdmc_fast.ops import native

SMALL = ["--epochs", "2", "--n-views", "2", "--n-clusters", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ratings.csv, part-1.csv and part-2.csv (its halves), test.csv, store; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    ratings = make_planted_ratings(40, 30, 500, seed=2)
    order = range(len(ratings))
    pieces = {"ratings": order[:400], "part-1": order[:200], "part-2": order[200:400], "test": order[400:]}
    for name, rows in pieces.items():
        write_csv(folder / f"{name}.csv", ratings.take(np.array(rows)))
    assert mfdmc("prepare", folder / "part-*.csv", "--out", folder / "store", "--quiet").status == 0
    return folder


def test_prepare_says_what_it_made(folder: Path, tmp_path: Path) -> None:
    ran = mfdmc("prepare", folder / "ratings.csv", "--out", tmp_path / "store", "--json")
    values = ran.json()
    store = Store(tmp_path / "store")
    assert (values["ratings"], values["rows"], values["users"]) == (400, 400, store.n_users)
    assert values["bytes"] == sum(path.stat().st_size for path in store.path.iterdir())
    assert values["rows_per_second"] > 0
    ran = mfdmc("prepare", folder / "ratings.csv", "--out", tmp_path / "other", "--workers", 1)
    assert "other written" in ran.out
    assert "rows_per_second" in ran.out
    for name in ("items.i32", "ratings.u8", "user_offsets.i64"):
        both = {(tmp_path / made / name).read_bytes() for made in ("store", "other")} | {
            (folder / "store" / name).read_bytes()
        }
        assert len(both) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["ratings.csv", "--out", "store"], 3, ["already exists; remove it or choose another name"]),
        (["no.csv", "--out", "new"], 3, ["no.csv", "No such file"]),
        (["no-*.csv", "--out", "new"], 3, ["no file has such a name"]),
        (["ratings.csv"], 2, ["--out"]),
        (["--out", "new"], 2, ["ratings"]),
        (["ratings.csv", "--out", "new", "--workers", "0"], 2, ["workers"]),
        (["ratings.csv", "--out", "new", "--rating-scale", "3:4"], 3, ["ratings.csv, row", "outside the rating scale"]),
        (["ratings.csv", "ratings.csv", "--out", "new", "--on-repeat", "error"], 3, ["rates item", "first in row 2"]),
    ],
)
def test_what_prepare_refuses(
    arguments: list[str], status: int, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    mfdmc("prepare", *arguments).refused(status, *words)
    assert not (folder / "new").exists()
    assert not (folder / "new.partial").exists()


@pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")
def test_training_on_a_store_is_training_on_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(folder / "store")
    config = MFDMCConfig(n_views=2, n_clusters=3)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    least = training_memory(config, store.n_users, store.n_items, len(store)).streamed
    found = []
    for source, options in (("ratings.csv", []), ("store", []), ("store", ["--memory-limit", str(least)])):
        values = mfdmc(
            *("train", folder / source, *SMALL, "--test", folder / "test.csv", *options),
            *("--out", tmp_path / "model", "--json"),
        ).json()
        assert values["streamed"] == bool(options)
        found.append({name: values[name] for name in ("rmse", "mae", "users", "items", "ratings", "batch_size")})
    assert found[0] == found[1] == found[2]
    mfdmc("train", folder / "store", *SMALL, "--memory-limit", least - 1, "--out", tmp_path / "m").refused(
        2, "training needs about", "the memory limit is"
    )
    mfdmc("train", folder / "ratings.csv", *SMALL, "--memory-limit", "2GiB", "--out", tmp_path / "m").refused(
        2, "memory_limit is for a store that mfdmc prepare wrote"
    )


def test_every_command_takes_a_store(folder: Path, tmp_path: Path) -> None:
    store, model = folder / "store", tmp_path / "model"
    values = mfdmc("train", store, *SMALL, "--test", "holdout:0.2", "--out", model, "--json").json()
    assert (values["ratings"], values["test_ratings"]) == (320, 80)
    assert mfdmc("evaluate", model, store, "--json").json()["ratings"] == 400
    assert len(mfdmc("crossval", store, "--folds", 2, *SMALL, "--json").json()["folds"]) == 2
    assert len(table(mfdmc("predict", model, store).out)) == 400
    tuned = mfdmc("tune", store, "--trials", 1, *SMALL, "--json").json()
    assert tuned["trials"] == 1
    ran = mfdmc("report", model, "--test", store, "--out", tmp_path / "report.html", "--json")
    assert ran.json()["bytes"] > 1000
    mfdmc("train", store, "--user-column", "a", "--out", model).refused(2, "a store has user, item, rating")
    mfdmc("train", tmp_path, "--out", model).refused(3, "not a store that mfdmc prepare wrote")
    mfdmc("crossval", tmp_path, "--folds", 2).refused(3, "only --folds official takes one")


def large_text(path: Path) -> Path:
    """Rows enough for some seconds of reading: strings, each written in an unusual way."""
    rows = "".join(f'"user {n % 5000}","item {n % 700}",{n % 5 + 1}\n' for n in range(40_000))
    path.write_text(rows * 30)
    return path


def test_interrupted_and_repeated(tmp_path: Path) -> None:
    text, out = large_text(tmp_path / "ratings.csv"), tmp_path / "store"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mfdmc_fast", "prepare", str(text), "--out", str(out), "--workers", "1"],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    pieces = tmp_path / "store.partial"
    deadline = time.monotonic() + 60
    while not (pieces / "0-0").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert "the same command goes on from there" in said
    assert not out.exists()
    assert (pieces / "0-0" / "part.json").exists()
    assert mfdmc("prepare", text, "--out", out, "--json").json()["rows"] == 1_200_000
    assert not pieces.exists()
    assert json.loads((out / "manifest.json").read_text())["ratings"] == Store(out).load().ratings.size


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    text = large_text(tmp_path / "ratings.csv")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "mfdmc_fast", "prepare", str(text), "--out", str(tmp_path / "store")],
        env={**ENVIRONMENT, "TERM": "xterm"},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("reading")
    child.expect(r"\d%")
    child.expect("left")
    child.expect(r"M rows/s")
    child.expect("written")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
