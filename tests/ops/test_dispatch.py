"""Which backend runs an op: falling back, refusing, the environment variable, and what is said about it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mfdmc_fast import MFDMC, BayesianMF, FunkMF
from mfdmc_fast.errors import BackendUnavailable, ConfigError
from mfdmc_fast.ops import dispatch, functional, native, triton_backend
from mfdmc_fast.ops.types import RowPrior, RowRatings
from mfdmc_fast.testing import Case, make_case

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
NOT_BUILT = "the C++ module was not built; reinstall with MFDMC_NATIVE=on"
OPS = [
    "batch_loss",
    "cluster_usage",
    "compact_columns",
    "embed",
    "fold_in",
    "fold_in_factors",
    "funkmf_loss",
    "gibbs_sampler",
    "posterior_scores",
    "score_pairs",
    "top_items",
]


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MFDMC_BACKEND", raising=False)
    dispatch._log_choice.cache_clear()
    yield
    dispatch._log_choice.cache_clear()


@pytest.fixture
def _no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: NOT_BUILT)


@pytest.fixture
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that loads, for tests that only choose."""
    monkeypatch.setattr(native, "_load", lambda: native)


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_auto_takes_the_compiled_kernels_where_they_can(dtype: torch.dtype) -> None:
    assert dispatch.choose("score_pairs", CPU, dtype).name == "cpu"


@pytest.mark.usefixtures("_no_module")
@pytest.mark.parametrize("op", OPS)
def test_auto_falls_back_without_the_module(op: str) -> None:
    assert dispatch.choose(op, CPU, torch.float32).name == "reference"


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.bfloat16, "it serves torch.float32, torch.float64 for score_pairs, not torch.bfloat16"),
        (META, torch.float32, "it serves cpu tensors, not meta"),
    ],
    ids=["dtype", "device"],
)
def test_kernels_serve_their_tensors_only(device: torch.device, dtype: torch.dtype, reason: str) -> None:
    assert dispatch.choose("score_pairs", device, dtype).name == "reference"
    with pytest.raises(BackendUnavailable, match=reason):
        dispatch.choose("score_pairs", device, dtype, "cpu")


@pytest.mark.usefixtures("_no_module")
def test_auto_logs_each_choice_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mfdmc_fast"):
        for _ in range(3):
            dispatch.choose("score_pairs", CPU, torch.float32)
        first = caplog.record_tuples.copy()
        dispatch.choose("embed", CPU, torch.float32)
        dispatch.choose("score_pairs", CPU, torch.float32)
    expected = "score_pairs runs on backend reference; not triton: it serves cuda tensors, not cpu"
    expected += f"; not cuda: it serves cuda tensors, not cpu; not cpu: {NOT_BUILT}"
    assert first == [("mfdmc_fast", logging.INFO, expected)]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["score_pairs", "embed"]


def test_an_explicit_backend_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="mfdmc_fast"):
        dispatch.choose("score_pairs", CPU, torch.float32, "reference")
    assert caplog.records == []


@pytest.mark.usefixtures("_no_module")
def test_an_explicit_backend_never_falls_back() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        dispatch.choose("score_pairs", CPU, torch.float32, "cpu")
    message = str(caught.value)
    assert message.startswith(f"backend 'cpu' cannot run score_pairs: {NOT_BUILT}")
    assert message.endswith("Available for it here: reference")


@pytest.mark.usefixtures("_module")
def test_an_op_without_a_kernel_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"it has no kernel for embed\. Available for it here: reference"):
        dispatch.choose("embed", CPU, torch.float32, "cpu")


@pytest.mark.usefixtures("_no_module")
def test_the_public_ops_pass_the_request_on() -> None:
    case = make_case()
    with pytest.raises(BackendUnavailable, match="Available for it here: reference"):
        functional.score_pairs(*case[:5], backend="cpu")
    expected = functional.score_pairs(*case[:5], backend="reference")
    assert torch.equal(functional.score_pairs(*case[:5]), expected)


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize(
    ("variable", "argument", "chosen"),
    [
        ("reference", "auto", "reference"),
        ("reference", "cpu", "cpu"),
        ("cpu", "reference", "reference"),
        ("cpu", "auto", "cpu"),
        ("auto", "auto", "cpu"),
        ("", "auto", "cpu"),
    ],
    ids=["honoured", "argument-wins", "argument-wins-too", "cpu", "auto", "empty"],
)
def test_environment_variable(variable: str, argument: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDMC_BACKEND", variable)
    assert dispatch.choose("score_pairs", CPU, torch.float32, argument).name == chosen


@pytest.mark.usefixtures("_no_module")
def test_environment_variable_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDMC_BACKEND", "cpu")
    with pytest.raises(BackendUnavailable, match="Available for it here: reference"):
        dispatch.choose("score_pairs", CPU, torch.float32)


@pytest.mark.parametrize("source", ["argument", "variable"])
def test_unknown_name(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "variable":
        monkeypatch.setenv("MFDMC_BACKEND", "gpu")
    with pytest.raises(ConfigError, match="unknown backend 'gpu'; choose one of: auto, triton, cuda, cpu, reference"):
        dispatch.choose("score_pairs", CPU, torch.float32, "gpu" if source == "argument" else "auto")


def test_names_are_spelled_exactly() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'CPU'; choose one of: auto, triton, cuda, cpu, reference"):
        dispatch.choose("score_pairs", torch.device("cpu"), torch.float32, "CPU")


def test_the_reference_has_every_op_on_every_device_and_dtype() -> None:
    backend = dispatch.BACKENDS["reference"]
    assert set(backend.ops) == set(OPS)
    for op in OPS:
        assert backend.why_not(op, META, torch.float16) is None


@pytest.fixture
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton and a GPU, for tests that only choose."""
    monkeypatch.setattr(triton_backend, "_load", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("interprets", ["0", "1"])
@pytest.mark.parametrize("op", ["batch_loss", "cluster_usage", "score_pairs", "top_items"])
def test_triton_comes_first_on_cuda_tensors_alone(op: str, interprets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interprets)
    assert dispatch.choose(op, CUDA, torch.float32).name == "triton"
    assert dispatch.choose(op, CPU, torch.float32).name != "triton"


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("source", ["argument", "variable"])
def test_the_interpreter_serves_cpu_tensors_by_name_only(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if source == "variable":
        monkeypatch.setenv("MFDMC_BACKEND", "triton")
    name = "auto" if source == "variable" else "triton"
    assert dispatch.choose("batch_loss", CPU, torch.float32, name).name == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailable, match=r"it serves cuda tensors, not cpu \(.*TRITON_INTERPRET=1\)"):
        dispatch.choose("batch_loss", CPU, torch.float32, name)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("op", "dtype", "limits", "reason"),
    [
        ("embed", torch.float32, (), "it has no kernel for embed"),
        ("batch_loss", torch.complex64, (), "for batch_loss, not torch.complex64"),
        ("top_items", torch.float64, (), "it serves torch.float32 for top_items, not torch.float64"),
        ("batch_loss", torch.float32, (1025, 1), "at most 1024 clusters or embedding numbers a side, not 1025"),
        ("score_pairs", torch.float32, (1024, 32_768), "at most 8192 numbers in the centers of a view"),
    ],
)
def test_triton_refuses_what_it_cannot_take(op: str, dtype: torch.dtype, limits: tuple[int, ...], reason: str) -> None:
    assert dispatch.choose(op, CUDA, dtype, "auto", *limits).name == "reference"
    with pytest.raises(BackendUnavailable, match=reason):
        dispatch.choose(op, CUDA, dtype, "triton", *limits)


def test_without_triton_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(triton_backend.importlib, "import_module", missing)
    triton_backend._load.cache_clear()
    assert "pip install 'mfdmc_fast[triton]'" in str(triton_backend.why_unavailable())
    with pytest.raises(BackendUnavailable, match="Triton is not installed"):
        triton_backend.score_pairs()
    triton_backend._load.cache_clear()


def test_without_a_gpu_a_sentence_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_load", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "torch finds no CUDA device" in str(triton_backend.why_unavailable())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_backend.why_unavailable() is None


def _calls(case: Case) -> dict[str, Any]:
    z = torch.ones(2, 3)
    everyone = torch.ones(len(case.user.assignment_logits), dtype=torch.bool)
    factors = case.user.centers[:, :2]
    one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.float32)
    own = RowRatings(torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32), z[0, :1].double())
    dim = case.user.centers.shape[1] * len(case.user.n_clusters)
    prior = RowPrior(torch.zeros(1, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))
    fixed = torch.ones(2, dim, dtype=torch.float64), None, 0.0, own, prior
    return {
        "batch_loss": lambda: functional.batch_loss(*case, backend="reference"),
        "cluster_usage": lambda: functional.cluster_usage(case.user, everyone, backend="reference"),
        "compact_columns": lambda: functional.compact_columns(z, torch.tensor([0, 2]), backend="reference"),
        "embed": lambda: functional.embed(case.user, backend="reference"),
        "fold_in": lambda: functional.fold_in(
            case.user._replace(assignment_logits=case.user.assignment_logits[:1], bias=None),
            *fixed,
            rates=[0.1],
            betas=(0.9, 0.999),
            epsilon=1e-8,
            backend="reference",
        ),
        "fold_in_factors": lambda: functional.fold_in_factors(*fixed, backend="reference"),
        "funkmf_loss": lambda: functional.funkmf_loss(
            functional.FactorTensors(factors),
            functional.FactorTensors(factors),
            0.0,
            *(case.user_idx[:0],) * 2,
            case.ratings[:0],
            backend="reference",
        ),
        "gibbs_sampler": lambda: functional.gibbs_sampler(
            np.array([0, 1]), *one, n_items=1, mean=1.0, rank=1, seed=0, backend="reference"
        ),
        "posterior_scores": lambda: functional.posterior_scores(
            z[None], z[None], 0.0, *(case.user_idx[:0],) * 2, scale=(0.0, 1.0), backend="reference"
        ),
        "score_pairs": lambda: functional.score_pairs(*case[:5], backend="reference"),
        "top_items": lambda: functional.top_items(z, z, None, 1, backend="reference"),
    }


@pytest.mark.parametrize("op", OPS)
def test_the_public_op_calls_the_launcher_of_the_chosen_backend(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = object()
    launchers = {name: (lambda *_, **__: marker) if name == op else None for name in OPS}
    replaced = dataclasses.replace(dispatch.BACKENDS["reference"], ops=launchers)
    monkeypatch.setitem(dispatch.BACKENDS, "reference", replaced)
    assert _calls(make_case())[op]() is marker


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_a_device_that_torch_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device = '{name}': must be a device of torch, such as cpu"):
        dispatch.check_device(name)


def test_a_device_that_is_not_there_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = "device = 'cuda': torch finds no CUDA device"
    with pytest.raises(BackendUnavailable, match=message):
        dispatch.check_device("cuda")
    for kind in (MFDMC, FunkMF, BayesianMF):
        with pytest.raises(BackendUnavailable, match=message):
            kind(device="cuda").fit("no such file")
