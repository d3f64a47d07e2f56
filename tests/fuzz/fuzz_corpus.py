"""Files that once did worse than being refused, and their like: what every target has to say of each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save

# a file made of the valid ones of its target
Make = Callable[[list[bytes]], bytes]


@dataclass(frozen=True)
class Case:
    """A file of the corpus.

    Attributes:
        name: of the case.
        target: what reads it.
        make: its bytes, of the valid files of the target.
        says: pattern of what the target says; "": the file is read.
    """

    name: str
    target: str
    make: Make
    says: str


def _text(content: bytes) -> Make:
    return lambda seeds: content


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def _entry(change: Callable[[dict[str, Any]], object], seed: int = 0) -> Make:
    """A safetensors file after a change of its header, which no library checks."""

    def make(seeds: list[bytes]) -> bytes:
        header, rest = _parts(seeds[seed])
        change(header)
        text = json.dumps(header, separators=(",", ":")).encode()  # as safetensors writes it
        return len(text).to_bytes(8, "little") + text + rest

    return make


def _shape(shape: list[int], seed: int = 0) -> Make:
    """The first tensor gets a shape."""

    def change(header: dict[str, Any]) -> None:
        next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = shape

    return _entry(change, seed)


def _values(change: Callable[[dict[str, Any]], object], seed: int = 0) -> Make:
    """The JSON object of this package in the header after a change."""

    def change_text(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        key = next(name for name in metadata if name.startswith("mfdmc_fast"))
        values = json.loads(metadata[key])
        change(values)
        metadata[key] = json.dumps(values)

    return _entry(change_text, seed)


def _json(text: str, seed: int = 0) -> Make:
    """Another text in the place of that JSON object."""

    def change(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        metadata[next(name for name in metadata if name.startswith("mfdmc_fast"))] = text

    return _entry(change, seed)


def _tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None], seed: int = 0) -> Make:
    """A tensor after a change, or none."""

    def make(seeds: list[bytes]) -> bytes:
        tensors = load(seeds[seed])
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed.contiguous()
        return save(tensors, _parts(seeds[seed])[0]["__metadata__"])

    return make


def _at(position: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[position] = value
        return tensor

    return change


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


_DEEP, _DIGITS = "[" * 100_000, "9" * 5000
_FUNKMF = 1  # of the valid models, the one whose ids are texts

CORPUS = (
    # settings
    Case("toml-lists-deep", "settings", _text(b"a = " + b"[" * 5000), "not a TOML file"),
    Case("toml-tables-deep", "settings", _text(b"a = " + b"{a=" * 3000), "not a TOML file"),
    Case("toml-keys-deep", "settings", _text(b"a" + b".a" * 8000 + b" = 1"), "not a setting|not a TOML file"),
    Case("toml-sections-deep", "settings", _text(b"[a" + b".a" * 8000 + b"]"), "not a setting|not a TOML file"),
    Case("toml-5000-digits", "settings", _text(f"seed = {_DIGITS}".encode()), "not a TOML file"),
    Case("toml-5000-digits-of-a-float", "settings", _text(f"view_dim = {_DIGITS}.0".encode()), "view_dim"),
    Case("toml-beyond-64-bits", "settings", _text(b"seed = 99999999999999999999"), "seed = 9+: must be in"),
    Case("toml-too-large", "settings", _text(b"# " + b"x" * 10_000_000), "more than 16,384 bytes"),
    Case("toml-no-such-day", "settings", _text(b"seed = 2020-13-45"), "not a TOML file"),
    Case("toml-latin-1", "settings", _text(b"# \xe9"), "not a TOML file"),
    Case("toml-many-clusters", "settings", _text(b"n_clusters = 1152921504606846976"), "at most 65536"),
    Case("toml-no-clusters", "settings", _text(b"n_clusters = -1"), "min_clusters|n_clusters"),
    Case("toml-device-meta", "settings", _text(b"device = 'meta'"), "one that holds numbers"),
    # delimiters; the first byte is their length
    Case("delimiter-empty", "delimited", _text(b"\0" + b"1,2\n"), "without quotes, line breaks and NUL"),
    Case("delimiter-nul", "delimited", _text(b"\1\0" + b"1\x002\n"), "without quotes, line breaks and NUL"),
    Case("delimiter-line-end", "delimited", _text(b"\1\n" + b"1\n2\n"), "without quotes, line breaks and NUL"),
    Case("delimiter-carriage-return", "delimited", _text(b"\1\r" + b"1\r2\n"), "without quotes, line breaks"),
    Case("delimiter-quote", "delimited", _text(b'\1"' + b'1"2\n'), "without quotes, line breaks and NUL"),
    Case("delimiter-not-utf-8", "delimited", _text(b"\1\xff" + b"1\xff2\n"), "without quotes, line breaks and NUL"),
    Case("delimiter-of-200-characters", "delimited", _text(b"\xc8" + b"ab" * 100 + b"1" + b"ab" * 100 + b"2\n"), ""),
    Case("delimiter-of-two-bytes", "delimited", _text(b"\2\xc3\xa9" + b"1\xc3\xa92\n"), ""),
    Case("delimiter-unit-separator", "delimited", _text(b"\1\x1f" + b"1\x1f2\n"), ""),
    Case("delimiter-backslash", "delimited", _text(b"\1\\" + b"1\\2\n"), ""),
    Case("delimiter-digit", "delimited", _text(b"\0011" + b"213\n"), ""),
    Case("delimiter-of-a-million-columns", "delimited", _text(b"\1~" + b"~" * 900_000), "more than 1024 columns"),
    # gzip
    Case("gzip-bomb", "gzip", lambda seeds: gzip.compress(b" " * 50_000_000, 9), "expand to more than 100"),
    Case("gzip-cut", "gzip", lambda seeds: seeds[0][:-9], "truncated or damaged"),
    # safetensors and JSON in it
    Case("model-shape-0-2^63", "model", _shape([0, 2**63]), "truncated or not a safetensors file"),
    Case("model-shape-overflows", "model", _shape([2**32, 2**32]), "truncated or not a safetensors file"),
    Case("model-shape-negative", "model", _shape([-1]), "truncated or not a safetensors file"),
    Case("model-shape-of-5000", "model", _shape([1] * 5000), "truncated or not a safetensors file"),
    Case(
        "model-header-2^63",
        "model",
        lambda seeds: (2**63).to_bytes(8, "little") + seeds[0][8:],
        "not a safetensors file",
    ),
    Case("model-of-2000-tensors", "model", lambda seeds: save({str(n): torch.zeros(1) for n in range(2000)}), "2,000"),
    Case("model-json-deep", "model", _json(_DEEP), "not a model of mfdmc_fast"),
    Case("model-json-deep-objects", "model", _json('{"a":' * 50_000), "not a model of mfdmc_fast"),
    Case("model-json-5000-digits", "model", _json(f'{{"format_version": {_DIGITS}}}'), "not a model of mfdmc_fast"),
    Case("model-no-cluster-ids", "model", _values(lambda v: v.pop("cluster_ids")), "missing 'cluster_ids'"),
    Case("model-cluster-ids-null", "model", _values(lambda v: v.update(cluster_ids=None)), "damaged"),
    Case("model-cluster-ids-one-side", "model", _values(lambda v: v["cluster_ids"].pop("item")), "missing 'item'"),
    Case("model-cluster-ids-nested", "model", _values(lambda v: v["cluster_ids"].update(user=_nested(900))), "n_views"),
    Case("model-2^60-clusters", "model", _values(lambda v: v["config"].update(n_clusters=2**60)), "at most 65536"),
    Case("model-65536-clusters", "model", _values(lambda v: v["config"].update(n_clusters=65536, view_dim=1)), "is"),
    Case("model-2^40-views", "model", _values(lambda v: v["config"].update(n_views=2**40)), "do not fit n_views"),
    Case("model-2^40-factors", "model", _values(lambda v: v["config"].update(n_factors=2**40), _FUNKMF), "damaged"),
    Case("model-history-of-texts", "model", _values(lambda v: v["history"].update(seconds="x")), "seconds"),
    Case("model-history-without-end", "model", _values(lambda v: v["history"].update(seconds=float("inf"))), "seconds"),
    Case("ids-offsets-fall", "model", _tensor("users.offsets", _at(1, 2**40), _FUNKMF), "offsets do not fit"),
    Case("ids-offsets-outside", "model", _tensor("users.offsets", _at(-1, 2**40), _FUNKMF), "offsets do not fit"),
    Case("ids-offsets-negative", "model", _tensor("users.offsets", _at(0, -(2**63)), _FUNKMF), "offsets do not fit"),
    Case("ids-offsets-overflow", "model", _tensor("users.offsets", _at(2, -(2**63)), _FUNKMF), "offsets do not fit"),
    Case("ids-offsets-none", "model", _tensor("users.offsets", lambda t: t[:0], _FUNKMF), "damaged"),
    Case("ids-offsets-gone", "model", _tensor("users.offsets", lambda t: None, _FUNKMF), "missing"),
    Case("seen-offsets-overflow", "model", _tensor("seen.offsets", _at(1, 2**63 - 1)), "do not fit the ids"),
    # checkpoints, with a checksum that fits
    Case("state-json-deep", "resume-cpu", _json(_DEEP), "not a checkpoint of mfdmc_fast"),
    Case("state-json-5000-digits", "resume-cpu", _json(f'{{"state": {_DIGITS}}}'), "not a checkpoint of mfdmc_fast"),
    Case("state-null", "resume-cpu", _values(lambda v: v.update(state=None)), "not a checkpoint of mfdmc_fast"),
    Case("state-empty", "resume-cpu", _values(lambda v: v.update(state={})), "missing 'history'"),
    Case("identity-a-list", "resume-cpu", _values(lambda v: v.update(identity=[])), "not a checkpoint of mfdmc_fast"),
    Case("identity-empty", "resume-cpu", _values(lambda v: v.update(identity={})), "belongs to another run"),
    Case(
        "identity-nested",
        "resume-cpu",
        _values(lambda v: v["identity"].update(seed=_nested(900))),
        "seed was .* and is 0",
    ),
    Case(
        "identity-long", "resume-cpu", _values(lambda v: v["identity"].update(seed="x" * 10**6)), "seed was .* and is 0"
    ),
    Case("state-history-a-list", "resume-cpu", _values(lambda v: v["state"].update(history=[])), "damaged"),
    Case(
        "state-2^40-epochs",
        "resume-cpu",
        _values(lambda v: v["state"]["history"]["epochs"][0].update(epoch=2**40)),
        "epochs",
    ),
    Case(
        "state-no-end",
        "resume-cpu",
        _values(lambda v: v["state"]["history"].update(epochs=v["state"]["history"]["epochs"] * 2)),
        "epochs",
    ),
    Case("state-best-of-epoch-9", "resume-cpu", _values(lambda v: v["state"].update(best_epoch=9)), "best_epoch"),
    Case("state-no-best", "resume-cpu", _values(lambda v: v["state"].update(best_cluster_ids=None)), "the best epoch"),
    Case(
        "state-other-clusters",
        "resume-cpu",
        _values(lambda v: v["state"]["cluster_ids"].update(user=[[0], [1]])),
        "expected",
    ),
    Case(
        "state-clusters-repeat",
        "resume-cpu",
        _values(lambda v: v["state"]["cluster_ids"].update(user=[[0, 0], [1]])),
        "ascending",
    ),
    Case("state-shape-0-2^63", "resume-cpu", _shape([0, 2**63]), "not a safetensors file"),
    Case(
        "steps-negative",
        "resume-cpu",
        _tensor("optimizer.user.assignment_logits.next_step", _at(0, -(2**31))),
        "steps that were",
    ),
    Case(
        "steps-too-many",
        "resume-cpu",
        _tensor("optimizer.item.assignment_logits.next_step", _at(3, 2**31 - 1)),
        "steps that were",
    ),
    Case("moments-negative", "resume-cpu", _tensor("optimizer.user.bias.exp_avg_sq", lambda t: t - 1), "negative"),
    Case("moments-gone", "resume-cpu", _tensor("optimizer.user.bias.exp_avg_sq", lambda t: None), "missing"),
    Case("moments-cut", "resume-cpu", _tensor("optimizer.user.assignment_logits.exp_avg", lambda t: t[:1]), "expected"),
    Case("moments-of-16-bits", "resume-cpu", _tensor("optimizer.user.centers.exp_avg", lambda t: t.half()), "expected"),
    Case(
        "parameters-not-finite", "resume-reference", _tensor("model.user_factors", lambda t: t / 0), "NaN or infinite"
    ),
    Case("parameters-transposed", "resume-adagrad", _tensor("model.item.centers", lambda t: t.T), "expected"),
    Case(
        "steps-of-torch", "resume-reference", _tensor("optimizer.user_factors.step", lambda t: t + 7), "steps that were"
    ),
    Case("lessons-cut", "resume-teacher", _tensor("user_idx", lambda t: t[:-1]), "of equal length"),
    Case("lessons-none", "resume-teacher", _tensor("ratings", lambda t: t[:0]), "of equal length"),
    Case("lessons-of-item-99", "resume-teacher", _tensor("item_idx", _at(0, 99)), "not rows from 0 to 11"),
    Case("lessons-of-item-minus-1", "resume-teacher", _tensor("item_idx", _at(0, -1)), "not rows from 0 to 11"),
    Case("lessons-not-finite", "resume-teacher", _tensor("ratings", lambda t: t / 0), "not finite"),
    Case("lessons-seconds", "resume-teacher", _values(lambda v: v["state"].update(seconds="long")), "seconds"),
)
