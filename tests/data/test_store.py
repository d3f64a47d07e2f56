"""Stores: what is read where ratings are, streamed ratings, damage, and stores of more than 2^31 ratings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdmc_fast.data import (
    Ratings,
    Store,
    StreamedRatings,
    kfold,
    leave_last_out,
    make_planted_ratings,
    prepare,
    read_pairs,
    read_ratings,
)
from mfdmc_fast.data.batches import deal
from mfdmc_fast.data.store_files import dtype_of
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.ops import native
from mfdmc_fast.training import digest_of


def write_text(path: Path, ratings: Ratings, *, times: bool = True) -> Path:
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.ratings.tolist(), strict=True)
    path.write_text("".join(f"{u},{i},{r}{f',{1000 - n}' if times else ''}\n" for n, (u, i, r) in enumerate(rows)))
    return path


@pytest.fixture(params=["codes", "floats"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    ratings = make_planted_ratings(50, 40, 700, seed=2)
    if request.param == "floats":  # more distinct ratings than a byte can number
        noise = np.random.default_rng(0).random(len(ratings))
        ratings = Ratings(ratings.users, ratings.items, ratings.ratings + noise)
    return write_text(tmp_path / "ratings.csv", ratings)


@pytest.fixture
def store(text: Path) -> Store:
    return prepare(text, text.parent / "store")


def test_a_store_is_read_like_a_file(store: Store, text: Path) -> None:
    from_text = read_ratings(text)
    for source in (store, store.path, str(store.path)):
        ratings = read_ratings(source, rating_scale=(-10, 10))
        assert ratings.distinct
        assert ratings.report == from_text.report
        users, items = read_pairs(source)  # type: ignore[arg-type]
        assert users.tolist() == ratings.users.tolist()
        assert items.tolist() == ratings.items.tolist()
    order = np.lexsort((from_text.items, from_text.users))
    assert ratings.users.tolist() == from_text.users[order].tolist()
    np.testing.assert_array_equal(ratings.ratings.astype(np.float32), from_text.ratings[order].astype(np.float32))
    assert len(kfold(ratings, 3, 0)) == 3
    by_user = dict(zip(*(leave_last_out(from_text).test.__dict__[c].tolist() for c in ("users", "items")), strict=True))
    last = leave_last_out(ratings).test
    assert dict(zip(last.users.tolist(), last.items.tolist(), strict=True)) == by_user
    with pytest.raises(DataError, match="outside the rating scale"):
        read_ratings(store, rating_scale=(4, 5))


@pytest.mark.parametrize(
    "options", [{"user": 0}, {"keep": ["fold"]}, {"delimiter": ","}, {"header": True}, {"timestamp": 3}]
)
def test_options_of_other_sources_are_refused(options: dict[str, Any], store: Store) -> None:
    with pytest.raises(ConfigError, match="a store has user, item, rating"):
        read_ratings(store, **options)


def test_streamed_ratings_say_what_those_in_memory_say(store: Store) -> None:
    streamed, loaded = StreamedRatings(store), store.load()
    assert streamed.sorted() is streamed
    assert len(streamed) == len(loaded)
    assert streamed.mean == loaded.mean
    assert streamed.scale == loaded.scale
    for side in ("user", "item"):
        np.testing.assert_array_equal(streamed.counts[side], loaded.counts[side])  # type: ignore[index]
    np.testing.assert_array_equal(streamed.user_offsets, loaded.user_offsets)
    np.testing.assert_array_equal(streamed.item_idx, loaded.item_idx)
    assert streamed.users is store.users
    assert streamed.items.ids.tolist() == loaded.items.ids.tolist()


def test_streamed_ratings_come_in_the_parts_of_those_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfdmc_fast.data.dataset.PART", 64)
    monkeypatch.setattr("mfdmc_fast.data.store.PART", 64)
    streamed, loaded = StreamedRatings(store), store.load()
    for mine, expected in zip(streamed.parts(), loaded.parts(), strict=True):
        for column, other in zip(mine, expected, strict=True):
            assert column.dtype == other.dtype
            np.testing.assert_array_equal(column, other)
    for step in (1, 7, 64, 100, 5000):
        for column, other in zip(streamed.every(step), loaded.every(step), strict=True):
            np.testing.assert_array_equal(column, other)
    assert digest_of(streamed) == digest_of(loaded)


# ---- Damage ----


def change(path: Path, how: Callable[[bytearray], bytes | bytearray]) -> None:
    path.write_bytes(how(bytearray(path.read_bytes())))


def flipped(data: bytearray) -> bytearray:
    data[len(data) // 2] ^= 1
    return data


def use(store: Path) -> None:
    """Everything that reads a store."""
    opened = Store(store)
    opened.load()
    opened.ratings()
    opened.check()


def test_every_damaged_file_is_named(store: Store) -> None:
    use(store.path)
    names = sorted(path.name for path in store.path.iterdir() if path.name != "manifest.json")
    assert len(names) == 7
    for name in names:
        path = store.path / name
        whole = path.read_bytes()
        for how, message in ((flipped, "damaged"), (lambda d: d[:-1], "truncated"), (lambda d: d + b"\0", "truncated")):
            change(path, how)
            with pytest.raises(DataError, match=message) as caught:
                use(store.path)
            assert name in str(caught.value)
            path.write_bytes(whole)
        path.unlink()
        with pytest.raises(DataError, match=r"No such file") as caught:
            use(store.path)
        assert name in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"ratings": 699},
        {"ratings": "700"},
        {"users": -1},
        {"items": 2**62},
        {"user_ids": "../../etc"},
        {"timestamps": "../passwd"},
        {"rating_values": [5.0, 1.0]},
        {"rating_values": []},
        {"rating_values": list(range(300))},
        {"rating_values": "12"},
        {"rating_scale": [1]},
        {"rating_scale": [1.0, "x"]},
        {"report": {"rows": 1, "unknown": 2}},
        {"report": None},
        {"files": {}},
        {"files": {"items.i32": {"bytes": 1}}},
        {"format_version": 0},
        {"format_version": None},
        {"users": None},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], store: Store) -> None:
    path = store.path / "manifest.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="damaged or inconsistent") as caught:
        use(store.path)
    assert "store" in str(caught.value)
    for name in changes:
        del values[name]
        path.write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"manifest\.json"):
            use(store.path)


@pytest.mark.parametrize("text_of", ["", "{", "[]", "3", '{"format": "other"}', "\x00\xff", '{"format": NaN}'])
def test_another_manifest_is_refused(text_of: str, store: Store) -> None:
    (store.path / "manifest.json").write_text(text_of)
    with pytest.raises(DataError, match="is not the manifest of a store, or damaged"):
        Store(store.path)


def test_a_newer_format_and_other_folders_are_refused(store: Store, tmp_path: Path) -> None:
    path = store.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(DataError, match="has format version 2, this package reads up to 1; upgrade"):
        Store(store.path)
    path.unlink()
    for folder in (store.path, tmp_path):
        with pytest.raises(DataError, match=r"not a store that mfdmc prepare wrote: it has no manifest\.json"):
            Store(folder)


# ---- The native engine ----

needs_engine = pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built")


def engine(folder: Path, offsets: np.ndarray, n_items: int, n_batches: int, values: Any, **options: Any) -> Any:
    ratings = folder / ("ratings.f32" if values is None else "ratings.u8")
    return native.Trainer(
        offsets,
        str(folder / "items.i32"),
        str(ratings),
        values,
        n_items=n_items,
        n_batches=n_batches,
        seed=5,
        **options,
    )


@needs_engine
@pytest.mark.parametrize("n_batches", [1, 3, 16, 17, 100])
def test_what_runs_give_to_a_batch(n_batches: int, store: Store) -> None:
    dataset = store.load()
    dealt = deal(len(dataset), n_batches, 5, 2)
    trainer = engine(store.path, store.user_offsets, store.n_items, n_batches, store.rating_values)
    trainer.start_epoch(2)
    for batch in range(n_batches):
        users, items, ratings = trainer.dealt(batch, 0, len(dealt))
        rows = np.arange(len(dealt)) * n_batches + dealt[:, batch]
        there = rows < len(dataset)
        assert (users[~there] == -1).all()
        for found, column in ((users, "user_idx"), (items, "item_idx"), (ratings, "ratings")):
            np.testing.assert_array_equal(found[there], getattr(dataset, column)[rows[there]])


@needs_engine
def test_more_than_2_to_the_31_ratings(tmp_path: Path) -> None:
    """Columns that take no space where they are 0: all but the ratings around number 2^31 and the last ones."""
    n_batches, beyond = 4096, 2**31
    n = beyond + 3 * n_batches + 77
    last = -(-n // n_batches) - 1
    offsets = np.array([0, beyond - 40, beyond + 30, n - 5, n])
    marked = np.concatenate([np.arange(beyond - n_batches, beyond + n_batches), np.arange(last * n_batches, n)])
    for name, numbers in (("items.i32", marked % 89 + 1), ("ratings.u8", marked % 3)):
        dtype = dtype_of(name)
        with open(tmp_path / name, "wb") as file:
            file.truncate(n * dtype.itemsize)
            for at, number in zip(marked.tolist(), numbers.astype(dtype), strict=True):
                file.seek(at * dtype.itemsize)
                file.write(number.tobytes())
    values = np.array([0.5, 1.5, 2.5])
    trainer = engine(tmp_path, offsets, 90, n_batches, values)
    trainer.start_epoch(1)
    for runs in (range(beyond // n_batches - 1, beyond // n_batches + 1), range(last, last + 1)):
        starts = np.array(runs) * n_batches
        positions = starts[:, None] + deal(n, n_batches, 5, 1, runs)
        for batch in range(n_batches):
            users, items, ratings = trainer.dealt(batch, runs.start, runs.stop)
            at = positions[:, batch]
            if at[-1] >= n:
                assert users[-1] == -1
                continue
            assert users.tolist() == (np.searchsorted(offsets, at, side="right") - 1).tolist()
            assert items.tolist() == (at % 89 + 1).tolist()
            assert ratings.tolist() == values[at % 3].tolist()


@needs_engine
def test_files_that_change_are_an_error_and_not_a_crash(store: Store) -> None:
    trainer = engine(store.path, store.user_offsets, store.n_items, 4, store.rating_values)
    trainer.start_epoch(1)
    n_runs = -(-len(store) // 4)
    trainer.dealt(0, 0, n_runs)
    whole = store.item_path.read_bytes()
    items = np.frombuffer(whole, np.int32).copy()
    for number in (-1, store.n_items):
        items[123] = number
        store.item_path.write_bytes(items.tobytes())
        with pytest.raises(DataError, match=r"items\.i32 .*an item that does not exist"):
            trainer.dealt(0, 0, n_runs)
    store.item_path.write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"items\.i32 .*truncated while it was read"):
        trainer.dealt(0, 0, n_runs)
    with pytest.raises(DataError, match=r"items\.i32: truncated or damaged"):
        engine(store.path, store.user_offsets, store.n_items, 4, store.rating_values)
    store.item_path.write_bytes(whole)
    trainer.dealt(0, 0, n_runs)
    if store.rating_values is not None:
        codes = bytearray(store.rating_path.read_bytes())
        codes[50] = len(store.rating_values)
        store.rating_path.write_bytes(codes)
        with pytest.raises(DataError, match="a code that stands for no rating"):
            trainer.dealt(0, 0, n_runs)
    store.rating_path.unlink()
    with pytest.raises(DataError, match=r"ratings.* cannot be read"):
        engine(store.path, store.user_offsets, store.n_items, 4, store.rating_values)


@needs_engine
def test_runs_and_batches_that_there_are_not(store: Store) -> None:
    trainer = engine(store.path, store.user_offsets, store.n_items, 4, store.rating_values)
    with pytest.raises(ValueError, match="start an epoch first"):
        trainer.dealt(0, 0, 1)
    trainer.start_epoch(1)
    for batch, first, last in ((4, 0, 1), (-1, 0, 1), (0, 1, 1), (0, -1, 1), (0, 0, len(store) // 4 + 2)):
        with pytest.raises(ValueError, match="must lie in it"):
            trainer.dealt(batch, first, last)
