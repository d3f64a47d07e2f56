"""Model files: what is saved comes back bit for bit, and what is damaged is refused in words."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mfdmc_fast import __version__
from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.errors import DataError, ModelFileError
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator, load_model
from mfdmc_fast.serialization import FORMAT_VERSION, load_state, save_state

Tensors = dict[str, torch.Tensor]
Header = dict[str, Any]
N_USERS, N_ITEMS = 30, 20
STRANGE = ["", " ", "a,b", 'say "hi"', "line\nbreak", "7", "007", "é", "e\u0301", "日本語", "😀", "\x00", "ß" * 500]


def planted(seed: int = 0) -> Ratings:
    return make_planted_ratings(N_USERS, N_ITEMS, 250, seed=seed)


def renamed(ratings: Ratings, users: Callable[[int], str], items: Callable[[int], str]) -> Ratings:
    """The same ratings with ids made of text."""
    return Ratings(
        np.array([users(u) for u in ratings.users.tolist()], dtype=object),
        np.array([items(i) for i in ratings.items.tolist()], dtype=object),
        ratings.ratings,
    )


def strange_id(number: int) -> str:
    return STRANGE[number] if number < len(STRANGE) else f"id {number}"


IDS: dict[str, Callable[[Ratings], Ratings]] = {
    "int": lambda r: r,
    "large-int": lambda r: Ratings(r.users - 15 + (2**63 - 30) * (r.users % 2), -r.items, r.ratings),
    "text": lambda r: renamed(r, lambda u: f"u{u}", lambda i: f"i{i}"),
    "unicode": lambda r: renamed(r, strange_id, lambda i: chr(0x3B1 + i)),
    "mixed-sides": lambda r: Ratings(r.users, renamed(r, str, lambda i: f"#{i}").items, r.ratings),
}
MODELS: dict[str, Callable[[], RatingEstimator]] = {
    "concat": lambda: MFDMC(n_views=3, n_clusters=4, view_dim=3, epochs=2),
    "pruned": lambda: MFDMC(n_views=3, n_clusters=5, view_dim=3, epochs=4, prune_start=2, prune_threshold=0.19),
    "sum": lambda: MFDMC(n_views=2, n_clusters=3, view_dim=5, combine="sum", epochs=2),
    "unbiased": lambda: MFDMC(n_views=2, n_clusters=3, biases=False, epochs=2),
    "adagrad": lambda: MFDMC(n_views=2, n_clusters=3, optimizer="adagrad", epochs=2),
    "funkmf": lambda: FunkMF(n_factors=5, epochs=2),
    "funkmf-adagrad": lambda: FunkMF(n_factors=5, optimizer="adagrad", epochs=2),
    "funkmf-unbiased": lambda: FunkMF(n_factors=5, biases=False, epochs=2),
}


def assert_same(loaded: RatingEstimator, fitted: RatingEstimator) -> None:
    """Same kind, settings, ids, history and, bit for bit, same answers."""
    assert type(loaded) is type(fitted)
    # what was left to the data or the optimizer is a number in the file
    used = fitted.model_.config.to_dict()
    assert loaded.get_params() == {k: used[k] if value is None else value for k, value in fitted.get_params().items()}
    filled_in = [name for name in used if name.startswith("learning_rate") or name == "weight_l2"]
    assert all(loaded.get_params()[name] is not None for name in filled_in)
    assert loaded.rating_scale_ == fitted.rating_scale_
    assert loaded.history_ == fitted.history_
    for ours, theirs in ((loaded.users_, fitted.users_), (loaded.items_, fitted.items_)):
        assert ours.kind == theirs.kind
        assert ours.ids.tolist() == theirs.ids.tolist()
    users = np.repeat(fitted.users_.ids, len(fitted.items_))
    items = np.tile(fitted.items_.ids, len(fitted.users_))
    np.testing.assert_array_equal(loaded.predict(users, items), fitted.predict(users, items), strict=True)
    unknown = "neither a user nor an item"
    for pair in ((unknown, fitted.items_.ids), (fitted.users_.ids, unknown), (unknown, unknown)):
        np.testing.assert_array_equal(loaded.predict(*pair), fitted.predict(*pair), strict=True)
    ours, theirs = (m.recommend(m.users_.ids, 7) for m in (loaded, fitted))
    assert ours.items.tolist() == theirs.items.tolist()
    np.testing.assert_array_equal(ours.scores, theirs.scores, strict=True)
    for side in ("user", "item"):
        assert loaded.model_.clusters(side) == fitted.model_.clusters(side)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("model", ["pruned", "funkmf"])
def test_round_trip_of_ids(tmp_path: Path, model: str, ids: str) -> None:
    fitted = MODELS[model]().fit(IDS[ids](planted()))
    fitted.save(tmp_path / "model")
    assert_same(load_model(tmp_path / "model"), fitted)
    assert_same(type(fitted).load(str(tmp_path / "model")), fitted)


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_of_models(tmp_path: Path, model: str) -> None:
    fitted = MODELS[model]().fit(planted(), validation=planted(1), rating_scale=(0.0, 6.0))
    fitted.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.history_.epochs[0].valid_rmse is not None
    assert_same(loaded, fitted)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


def test_pruned_clusters_keep_their_numbers_and_take_no_room(tmp_path: Path) -> None:
    fitted = MODELS["pruned"]().fit(planted())
    events = fitted.history_.prune_events
    assert events
    fitted.save(tmp_path / "model")
    loaded = MFDMC.load(tmp_path / "model")
    for side in ("user", "item"):
        assert [c.cluster for c in loaded.clusters(side)] == [c.cluster for c in fitted.clusters(side)]
        for ours, theirs in zip(loaded.memberships(side), fitted.memberships(side), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        gone = sum(event.side == side for event in events)
        assert tensors_of(tmp_path / "model")[f"model.{side}.centers"].shape == (15 - gone, 3)


@pytest.mark.parametrize("model", ["pruned", "funkmf"])
def test_a_loaded_model_can_be_trained_again_and_changes_nothing(tmp_path: Path, model: str) -> None:
    fitted = MODELS[model]().fit(planted())
    fitted.save(tmp_path / "model")
    before = (tmp_path / "model").read_bytes()
    loaded = load_model(tmp_path / "model").fit(planted())
    np.testing.assert_array_equal(loaded.predict(1, [1, 2, 3]), fitted.predict(1, [1, 2, 3]))
    assert (tmp_path / "model").read_bytes() == before


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path: Path) -> None:
    fitted = MODELS["concat"]().fit(planted())
    fitted.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    with open(tmp_path / "model", "rb+") as file:  # the same inode, which might be mapped into memory
        file.write(b"\xff" * (tmp_path / "model").stat().st_size)
    (tmp_path / "model").unlink()
    assert_same(loaded, fitted)


@pytest.mark.parametrize("name", ["pruned", "funkmf"])
def test_files_from_before_there_was_a_choice_of_optimizer_were_trained_with_adam(
    tmp_path: Path, files: dict[str, Path], name: str
) -> None:
    def older(tensors: Tensors, header: Header) -> None:
        del header["config"]["optimizer"]
        assert header["format_version"] == 1
        assert header["config"]["learning_rate"] > 0

    loaded = load_model(damaged(files[name], tmp_path / "model", older))
    assert loaded.get_params()["optimizer"] == "adam"
    assert_same(loaded, load_model(files[name]))


def test_loading_as_another_kind_is_refused(tmp_path: Path) -> None:
    MODELS["funkmf"]().fit(planted()).save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="model: holds a model of kind FunkMF, not MFDMC"):
        MFDMC.load(tmp_path / "model")


def tensors_of(path: Path) -> Tensors:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def header_of(path: Path) -> Header:
    with safe_open(path, framework="pt") as file:
        header: Header = json.loads(file.metadata()["mfdmc_fast"])
    return header


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, never to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for name, ids in (("pruned", "int"), ("funkmf", "text")):
        MODELS[name]().fit(IDS[ids](planted())).save(folder / name)
    return {name: folder / name for name in ("pruned", "funkmf")}


def damaged(source: Path, target: Path, change: Callable[[Tensors, Header], None]) -> Path:
    """A copy of a model file after a change of its tensors or its header."""
    tensors, header = tensors_of(source), header_of(source)
    change(tensors, header)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, target, metadata={"mfdmc_fast": json.dumps(header)})
    return target


def refused(path: Path, message: str | None = None) -> None:
    """Loading says which file, and what is wrong with it."""
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ModelFileError):
        load_state(path)


def test_the_copy_itself_is_a_good_file(tmp_path: Path, files: dict[str, Path]) -> None:
    for name, source in files.items():
        copy = damaged(source, tmp_path / name, lambda tensors, header: None)
        assert_same(load_model(copy), load_model(source))


@pytest.mark.parametrize("name", ["pruned", "funkmf"])
def test_every_missing_tensor_is_named(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    for missing in tensors_of(files[name]):
        path = damaged(files[name], tmp_path / "model", lambda tensors, header, gone=missing: tensors.pop(gone))
        # without its integer ids, a side is taken to have text ids
        refused(path, r"missing '\w+s\.utf8'" if missing.endswith(".ids") else f"missing '{missing}'")


@pytest.mark.parametrize("name", ["pruned", "funkmf"])
def test_every_wrong_shape_is_refused(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    def longer(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[-1:]])

    def shorter(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:-1]

    def deeper(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[None]

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:0]

    for changed in tensors_of(files[name]):
        for shape in (longer, shorter, deeper, empty):

            def change(tensors: Tensors, header: Header, n: str = changed, f: Any = shape) -> None:
                tensors[n] = f(tensors[n])

            refused(damaged(files[name], tmp_path / "model", change), "damaged or inconsistent")


@pytest.mark.parametrize("name", ["pruned", "funkmf"])
def test_every_wrong_dtype_is_refused(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    for changed in tensors_of(files[name]):
        for dtype in (torch.float64, torch.bfloat16, torch.int16):

            def change(tensors: Tensors, header: Header, n: str = changed, d: torch.dtype = dtype) -> None:
                tensors[n] = tensors[n].to(d)

            refused(damaged(files[name], tmp_path / "model", change), "damaged or inconsistent")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, files: dict[str, Path], value: float) -> None:
    for source in files.values():
        for name, tensor in tensors_of(source).items():
            if tensor.dtype == torch.float32:

                def change(tensors: Tensors, header: Header, n: str = name) -> None:
                    tensors[n].view(-1)[-1] = value

                refused(damaged(source, tmp_path / "model", change), "holds NaN or infinite values")


def set_tensor(name: str, position: int, value: int) -> Callable[[Tensors, Header], None]:
    def change(tensors: Tensors, header: Header) -> None:
        tensors[name][position] = value

    return change


DAMAGED_IDS: dict[str, tuple[str, Callable[[Tensors, Header], None], str]] = {
    "seen-item-too-large": ("pruned", set_tensor("seen.items", 3, N_ITEMS), "seen"),
    "seen-item-negative": ("pruned", set_tensor("seen.items", 3, -1), "seen"),
    "seen-offsets-fall": ("pruned", set_tensor("seen.offsets", 3, 10**6), "seen"),
    "seen-offsets-start": ("pruned", set_tensor("seen.offsets", 0, 1), "seen"),
    "seen-offsets-end": ("pruned", set_tensor("seen.offsets", -1, 3), "seen"),
    "repeated-user": ("pruned", set_tensor("users.ids", 3, 1), "more than once"),
    "repeated-text": (
        "funkmf",
        lambda t, h: t["items.utf8"].copy_(t["items.utf8"].clone().fill_(65)),
        "more than once",
    ),
    "utf8-invalid": ("funkmf", set_tensor("users.utf8", 0, 0xFF), "utf-8"),
    "text-offsets-fall": ("funkmf", set_tensor("users.offsets", 2, 0), "users.offsets"),
    "text-offsets-end": ("funkmf", set_tensor("users.offsets", -1, 10**9), "users.offsets"),
    "text-offsets-negative": ("funkmf", set_tensor("items.offsets", 0, -1), "items.offsets"),
}


@pytest.mark.parametrize("case", DAMAGED_IDS)
def test_damaged_ids_are_refused(tmp_path: Path, files: dict[str, Path], case: str) -> None:
    name, change, message = DAMAGED_IDS[case]
    refused(damaged(files[name], tmp_path / "model", change), message)


def set_header(key: str, value: Any) -> Callable[[Tensors, Header], None]:
    """Set an entry of the header; dots lead into it."""

    def change(tensors: Tensors, header: Header) -> None:
        *path, last = key.split(".")
        target = header
        for part in path:
            target = target[part]
        target[last] = value

    return change


def drop_header(key: str) -> Callable[[Tensors, Header], None]:
    return lambda tensors, header: header.pop(key)


DAMAGED_HEADERS: dict[str, tuple[Callable[[Tensors, Header], None], str]] = {
    "no-version": (drop_header("format_version"), "not a model of mfdmc_fast"),
    "no-kind": (drop_header("kind"), "missing 'kind'"),
    "no-config": (drop_header("config"), "missing 'config'"),
    "no-mean": (drop_header("train_mean"), "missing 'train_mean'"),
    "no-scale": (drop_header("rating_scale"), "missing 'rating_scale'"),
    "no-cluster-ids": (drop_header("cluster_ids"), "missing 'cluster_ids'"),
    "no-history": (drop_header("history"), "missing 'history'"),
    "unknown-kind": (set_header("kind", "SVD++"), "unknown kind of model 'SVD\\+\\+'"),
    "kind-is-a-list": (set_header("kind", ["MFDMC"]), "damaged"),
    "config-is-null": (set_header("config", None), "damaged"),
    "unknown-setting": (set_header("config.learning_rat", 0.1), "unknown setting learning_rat"),
    "setting-of-wrong-type": (set_header("config.n_views", "three"), "n_views"),
    "setting-out-of-range": (set_header("config.n_views", 0), "n_views = 0: must be 1 or more"),
    "more-views": (set_header("config.n_views", 4), "cluster_ids of the user side do not fit n_views"),
    "other-dimension": (set_header("config.view_dim", 4), "user.centers is"),
    "biases-that-are-not-there": (set_header("config.biases", False), "bias"),
    "mean-is-text": (set_header("train_mean", "high"), "damaged"),
    "mean-is-nan": (set_header("train_mean", float("nan")), "train_mean"),
    "mean-is-infinite": (set_header("train_mean", float("inf")), "train_mean"),
    "scale-upside-down": (set_header("rating_scale", [5.0, 1.0]), "rating_scale 5.0 to 1.0"),
    "scale-of-three": (set_header("rating_scale", [1.0, 2.0, 3.0]), "damaged"),
    "scale-is-nan": (set_header("rating_scale", [1.0, float("nan")]), "rating_scale 1.0 to nan"),
    "cluster-ids-short": (set_header("cluster_ids.user", [[0], [1]]), "cluster_ids of the user side"),
    "cluster-ids-empty": (set_header("cluster_ids.item", [[0], [], [1]]), "cluster_ids of the item side"),
    "cluster-ids-of-other-size": (set_header("cluster_ids.user", [[0], [0], [0]]), "user.assignment_logits is"),
    "cluster-ids-are-text": (set_header("cluster_ids.user", "abc"), "damaged"),
    "cluster-ids-are-infinite": (set_header("cluster_ids.user", [[float("inf")], [0], [0]]), "damaged"),
    "history-is-a-list": (set_header("history", []), "damaged"),
    "history-without-epochs": (lambda t, h: h["history"].pop("epochs"), "missing 'epochs'"),
    "history-with-a-strange-entry": (set_header("history.colour", "red"), "colour"),
}


@pytest.mark.parametrize("case", DAMAGED_HEADERS)
def test_damaged_headers_are_refused(tmp_path: Path, files: dict[str, Path], case: str) -> None:
    change, message = DAMAGED_HEADERS[case]
    refused(damaged(files["pruned"], tmp_path / "model", change), message)


@pytest.mark.parametrize("kind", ["repeated", "out-of-range"])
def test_cluster_numbers_that_cannot_be_are_refused(tmp_path: Path, files: dict[str, Path], kind: str) -> None:
    def change(tensors: Tensors, header: Header) -> None:
        numbers = header["cluster_ids"]["user"][0]
        numbers[-1] = numbers[0] if kind == "repeated" else 99

    refused(damaged(files["pruned"], tmp_path / "model", change), "cluster_ids")


def test_a_setting_that_would_fill_the_memory_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    # 10**18 numbers are refused by torch before any memory is taken; a smaller size would hang the test, not fail it
    refused(damaged(files["pruned"], tmp_path / "model", set_header("config.n_clusters", 10**18)), "damaged")


def test_a_model_of_a_missing_device_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("the device is there")
    for source in files.values():
        path = damaged(source, tmp_path / "model", set_header("config.device", "cuda"))
        refused(path, "torch finds no CUDA device.*: load it with device='cpu'$")


def test_a_backend_of_another_device_is_left_behind(tmp_path: Path, files: dict[str, Path]) -> None:
    def trained_on_a_gpu(tensors: Tensors, header: Header) -> None:
        header["config"] |= {"device": "cuda:1", "backend": "triton"}

    path = damaged(files["pruned"], tmp_path / "model", trained_on_a_gpu)
    loaded = load_model(path, device="cpu")
    assert (loaded.device, loaded.backend) == ("cpu", "auto")
    assert np.isfinite(loaded.predict([1], [1])).all()
    path = damaged(files["pruned"], tmp_path / "model", set_header("config.backend", "reference"))
    assert load_model(path, device="cpu").backend == "reference"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "\x00", "{'a': 1}"], ids=repr)
def test_a_header_that_is_not_a_json_object(tmp_path: Path, files: dict[str, Path], text: str) -> None:
    save_file(tensors_of(files["pruned"]), tmp_path / "model", metadata={"mfdmc_fast": text})
    refused(tmp_path / "model", "a safetensors file, but not a model of mfdmc_fast")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}], ids=["none", "empty", "other"])
def test_a_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model", metadata=metadata)
    refused(tmp_path / "model", "a safetensors file, but not a model of mfdmc_fast")


def test_a_newer_format_says_how_to_read_it(tmp_path: Path, files: dict[str, Path]) -> None:
    def change(tensors: Tensors, header: Header) -> None:
        # a newer format may have other parts, so nothing else may be looked at
        header.clear()
        header |= {"format_version": FORMAT_VERSION + 1, "package_version": "9.8.7"}

    path = damaged(files["pruned"], tmp_path / "model", change)
    refused(path, rf"format version {FORMAT_VERSION + 1}.*written by mfdmc_fast 9\.8\.7: upgrade with pip install")


@pytest.mark.parametrize("version", ["1", 1.5, None, [], 0, -1, True], ids=repr)
def test_a_format_version_that_is_none(tmp_path: Path, files: dict[str, Path], version: Any) -> None:
    refused(damaged(files["pruned"], tmp_path / "model", set_header("format_version", version)))


def test_the_header_says_what_wrote_it(files: dict[str, Path]) -> None:
    header = header_of(files["pruned"])
    assert header["format_version"] == FORMAT_VERSION
    assert header["package_version"] == __version__
    assert header["kind"] == "MFDMC"


@pytest.mark.parametrize("name", ["pruned", "funkmf"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    data = files[name].read_bytes()
    end_of_header = 8 + int.from_bytes(data[:8], "little")
    lengths = {0, 1, 2, 4, 7, 8, 9, end_of_header - 1, end_of_header, end_of_header + 1, len(data) - 1}
    lengths |= set(range(0, len(data), len(data) // 60))
    path = tmp_path / "model"
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        refused(path, "truncated or not a safetensors file")


def test_bytes_after_the_end_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "model").write_bytes(files["pruned"].read_bytes() + b"\0")
    refused(tmp_path / "model", "truncated or not a safetensors file")


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, files: dict[str, Path]) -> None:
    data = files["pruned"].read_bytes()
    end_of_header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    refusals = 0
    for position in [*range(8), *rng.integers(8, end_of_header, 120).tolist()]:
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "model").write_bytes(changed)
        try:
            load_model(tmp_path / "model")
        except ModelFileError:
            refusals += 1
    assert refusals > 60  # a digit of a loss in the history may change unseen; most of the header may not


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_loaded(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "model").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    refused(
        tmp_path / "model", r"pickle or zip archive, which is never loaded because it can run code; models .*save\(\)"
    )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_save_is_never_loaded(tmp_path: Path, zipped: bool) -> None:
    content = {"trap": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "model", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "model", "pickle or zip archive")
    assert not (tmp_path / "sprung").exists()


def test_an_old_pickle_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), 0))
    refused(tmp_path / "model", "not a safetensors file")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("first_bytes", [b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"], ids=repr)
def test_a_model_is_not_taken_for_a_pickle_by_its_length(
    tmp_path: Path, files: dict[str, Path], first_bytes: bytes
) -> None:
    # a safetensors file starts with the length of its header, which may look like the mark of another format
    source, path = files["funkmf"], tmp_path / "model"

    def padded(extra: int) -> bytes:
        damaged(source, path, lambda tensors, header: header["history"].update(stop_reason="x" * extra))
        return path.read_bytes()

    short = int.from_bytes(padded(0)[:8], "little")
    wanted = int.from_bytes(first_bytes, "little") + (1 << 16)
    assert padded(wanted - short)[:2] == first_bytes
    np.testing.assert_array_equal(load_model(path).predict("u1", "i1"), load_model(source).predict("u1", "i1"))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "cannot be read: No such file or directory")
    refused(tmp_path, "cannot be read: Is a directory")


def test_text_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,item,rating\n1,2,3\n")
    refused(tmp_path / "ratings.csv", "truncated or not a safetensors file")


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = MODELS["funkmf"]().fit(planted())
    old.save(tmp_path / "model")
    before = (tmp_path / "model").read_bytes()

    def interrupted(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MODELS["concat"]().fit(planted()).save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_history_that_json_cannot_hold_is_not_written(tmp_path: Path, value: float) -> None:
    fitted = MODELS["funkmf"]().fit(planted())
    fitted.history_.epochs[0].loss["total"] = value
    with pytest.raises(ValueError, match="JSON"):
        save_state(fitted._state(), tmp_path / "model", __version__)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist; create it first"):
        MODELS["funkmf"]().fit(planted()).save(tmp_path / "nowhere" / "model")


def test_a_full_disk_is_a_data_error_and_leaves_the_old_file(tmp_path: Path, files: dict[str, Path]) -> None:
    path = tmp_path / "model"
    path.write_bytes(files["pruned"].read_bytes())
    # in a process of its own, because the limit also holds for the files that tests write their results to
    code = (
        "import resource, sys\n"
        "from mfdmc_fast import DataError, load_model\n"
        "model = load_model(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "try:\n"
        "    model.save(sys.argv[1])\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "model: cannot be written" in ran.stdout
    assert path.read_bytes() == files["pruned"].read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_that_is_nested_deep_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    tensors = tensors_of(files["mfdmc"] if "mfdmc" in files else next(iter(files.values())))
    save_file(tensors, tmp_path / "deep.safetensors", metadata={"mfdmc_fast": "[" * 100_000})
    refused(tmp_path / "deep.safetensors", "not a model of mfdmc_fast")


def test_offsets_whose_differences_overflow_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    def change(tensors: Tensors, header: Header) -> None:
        tensors["seen.offsets"][1:4] = torch.tensor([2**63 - 1, -(2**63), -1])
        tensors["seen.offsets"][4:-1] = -1

    refused(damaged(next(iter(files.values())), tmp_path / "m.safetensors", change), "do not fit the ids")


@pytest.mark.parametrize("device", ["meta", "hpu"])
def test_a_device_that_holds_no_numbers_is_refused(tmp_path: Path, files: dict[str, Path], device: str) -> None:
    def change(tensors: Tensors, header: Header) -> None:
        header["config"]["device"] = device

    refused(damaged(next(iter(files.values())), tmp_path / "m.safetensors", change), device)


def test_a_file_of_thousands_of_tensors_is_refused(tmp_path: Path) -> None:
    save_file({str(n): torch.zeros(1) for n in range(2000)}, tmp_path / "many.safetensors")
    refused(tmp_path / "many.safetensors", "2,000 tensors")
