"""The C++ kernels against the oracle, and their refusal of arguments that they cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.ops import functional, native, reference
from mfdmc_fast.ops.types import SideTensors

needs_module = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

BOUNDS = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
GLOBAL_MEAN = 3.5


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_side(n: int, n_clusters: tuple[int, ...], view_dim: int, seed: int, *, bias: bool = True) -> SideTensors:
    """A float64 side whose numbers float32 represents exactly, so that rounding the inputs is no error."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    return SideTensors(
        randn(n, sum(n_clusters)), randn(sum(n_clusters), view_dim), n_clusters, randn(n) if bias else None
    )


def make_indices(n: int, n_pairs: int, seed: int) -> Tensor:
    return torch.randint(n, (n_pairs,), generator=torch.Generator().manual_seed(seed))


def cast(side: SideTensors, dtype: torch.dtype) -> SideTensors:
    bias = None if side.bias is None else side.bias.to(dtype)
    return SideTensors(side.assignment_logits.to(dtype), side.centers.to(dtype), side.n_clusters, bias)


def assert_matches_oracle(
    user: SideTensors, item: SideTensors, user_idx: Tensor, item_idx: Tensor, combine: str, dtype: torch.dtype
) -> None:
    expected = reference.score_pairs(user, item, GLOBAL_MEAN, user_idx, item_idx, combine=combine)
    actual = native.score_pairs(cast(user, dtype), cast(item, dtype), GLOBAL_MEAN, user_idx, item_idx, combine=combine)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, **BOUNDS[dtype])


CASES = {
    # n_users, n_items, user clusters, item clusters, view_dim, n_pairs
    "B0": (5, 7, (3, 2), (2, 4), 3, 0),
    "B1": (5, 7, (3, 2), (2, 4), 3, 1),
    "B1-of-many": (50_000, 20_000, (3, 2), (2, 4), 3, 1),
    "B63-one-cluster": (40, 30, (1, 4, 3), (2, 1, 1), 7, 63),
    "B777-one-view": (300, 2_000, (6,), (3,), 16, 777),
    "B4096-ragged": (943, 100_000, (10, 3, 9, 2, 7), (5, 10, 2, 8, 4), 5, 4096),
    "B20001-duplicates": (3, 11, (10,) * 8, (10,) * 8, 4, 20_001),
}


@needs_module
@pytest.mark.parametrize("dtype", BOUNDS, ids=["f32", "f64"])
@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_oracle(case, combine, dtype):
    n_users, n_items, user_clusters, item_clusters, view_dim, n_pairs = case
    user = make_side(n_users, user_clusters, view_dim, seed=1)
    item = make_side(n_items, item_clusters, view_dim, seed=2)
    user_idx, item_idx = make_indices(n_users, n_pairs, seed=3), make_indices(n_items, n_pairs, seed=4)
    assert_matches_oracle(user, item, user_idx, item_idx, combine, dtype)


@needs_module
@pytest.mark.parametrize("dtype", BOUNDS, ids=["f32", "f64"])
def test_without_biases(dtype):
    user, item = make_side(9, (4, 2), 3, seed=1, bias=False), make_side(8, (3, 3), 3, seed=2, bias=False)
    assert_matches_oracle(user, item, make_indices(9, 100, seed=3), make_indices(8, 100, seed=4), "concat", dtype)


@needs_module
@pytest.mark.parametrize("dtype", BOUNDS, ids=["f32", "f64"])
@pytest.mark.parametrize("offset", [-80.0, 80.0, 1000.0])
def test_huge_logits(offset, dtype):
    user, item = make_side(9, (4, 2), 3, seed=1), make_side(8, (3, 3), 3, seed=2)
    user.assignment_logits.mul_(80).clamp_(-80, 80)  # saturated: one weight of nearly 1 in a view
    item.assignment_logits.copy_((item.assignment_logits + offset).float())
    assert_matches_oracle(user, item, make_indices(9, 100, seed=3), make_indices(8, 100, seed=4), "concat", dtype)


@needs_module
def test_worked_by_hand():
    # equal logits: z is the mean of the centers; z_u = (1, 2 | 4, 4), z_i = (1, 1 | 0.5, 0)
    user = SideTensors(torch.zeros(1, 3), torch.tensor([[0.0, 1], [2, 3], [4, 4]]), (2, 1), torch.tensor([0.25]))
    item = SideTensors(torch.zeros(1, 3), torch.tensor([[1.0, 1], [0, 0], [1, 0]]), (1, 2), torch.tensor([-0.5]))
    zero = torch.zeros(1, dtype=torch.int64)
    assert native.score_pairs(user, item, 3.0, zero, zero, combine="concat").item() == 7.75
    assert native.score_pairs(user, item, 3.0, zero, zero, combine="sum").item() == 2.75 + 5 * 1.5 + 6 * 1


@needs_module
@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_any_number_of_threads_gives_the_same_bits(combine):
    user, item = (
        cast(make_side(500, (10, 7), 5, seed=1), torch.float32),
        cast(make_side(400, (3, 9), 5, seed=2), torch.float32),
    )
    indices = make_indices(500, 10_001, seed=3), make_indices(400, 10_001, seed=4)
    results = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        results.append(native.score_pairs(user, item, GLOBAL_MEAN, *indices, combine=combine))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_module
def test_permuting_the_batch_permutes_the_result():
    user, item = make_side(50, (4, 2), 3, seed=1), make_side(40, (3, 3), 3, seed=2)
    user_idx, item_idx = make_indices(50, 300, seed=3), make_indices(40, 300, seed=4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    straight = native.score_pairs(user, item, GLOBAL_MEAN, user_idx, item_idx, combine="concat")
    permuted = native.score_pairs(user, item, GLOBAL_MEAN, user_idx[order], item_idx[order], combine="concat")
    assert torch.equal(straight[order], permuted)


@needs_module
def test_parameters_are_detached():
    user, item = make_side(4, (2,), 3, seed=1), make_side(4, (2,), 3, seed=2)
    user.centers.requires_grad_()
    zero = torch.zeros(1, dtype=torch.int64)
    assert not native.score_pairs(user, item, GLOBAL_MEAN, zero, zero, combine="concat").requires_grad


def good_arguments() -> dict:
    index = torch.tensor([0, 1, 2])
    return {
        "user": make_side(4, (2, 3), 6, seed=1),
        "item": make_side(5, (3, 2), 6, seed=2),
        "global_mean": GLOBAL_MEAN,
        "user_idx": index,
        "item_idx": index,
        "combine": "concat",
    }


@needs_module
@pytest.mark.parametrize("value", [-1, 4, 2**62, -(2**63)])
def test_index_outside_its_side_is_refused(value):
    arguments = good_arguments()
    arguments["user_idx"] = torch.tensor([0, value, 1])
    with pytest.raises(IndexError, match=rf"user_idx\[1\] is {value}, outside \[0, 4\)"):
        native.score_pairs(**arguments)


@needs_module
def test_index_into_an_empty_side_is_refused():
    arguments = good_arguments()
    arguments["item"] = make_side(0, (3, 2), 6, seed=2)
    with pytest.raises(IndexError, match=r"item_idx\[0\] is 0, outside \[0, 0\)"):
        native.score_pairs(**arguments)


BAD_SIDES = {
    "half": (TypeError, r"user\.assignment_logits must be", lambda side: cast(side, torch.float16)),
    "mixed-dtype": (TypeError, r"user\.centers", lambda side: side._replace(centers=side.centers.float())),
    "bias-dtype": (TypeError, r"user\.bias", lambda side: side._replace(bias=side.bias.float())),
    "other-device": (ValueError, r"CPU", lambda side: side._replace(centers=side.centers.to("meta"))),
    "strided-logits": (
        ValueError,
        r"user\.assignment_logits must be contiguous",
        lambda side: side._replace(assignment_logits=side.assignment_logits.T.contiguous().T),
    ),
    "strided-bias": (
        ValueError,
        r"user\.bias must be contiguous",
        lambda side: side._replace(bias=torch.stack([side.bias] * 2, 1)[:, 0]),
    ),
    "logits-shape": (
        ValueError,
        r"user\.assignment_logits must have shape \[4, 5\], not \[4, 4\]",
        lambda side: side._replace(assignment_logits=side.assignment_logits[:, :4].contiguous()),
    ),
    "logits-ndim": (
        ValueError,
        r"user\.assignment_logits must have shape",
        lambda side: side._replace(assignment_logits=side.assignment_logits.flatten()),
    ),
    "centers-shape": (ValueError, r"user\.centers", lambda side: side._replace(centers=side.centers[:4])),
    "centers-scalar": (ValueError, r"user\.centers", lambda side: side._replace(centers=side.centers[0, 0])),
    "bias-shape": (ValueError, r"user\.bias must have shape \[4\]", lambda side: side._replace(bias=side.bias[:3])),
    "one-bias": (ValueError, "bias", lambda side: side._replace(bias=None)),
    "view-dim": (ValueError, "view_dim", lambda side: side._replace(centers=side.centers[:, :5].contiguous())),
    "number-of-views": (ValueError, "number of views", lambda side: side._replace(n_clusters=(5,))),
    "empty-view": (ValueError, "at least 1", lambda side: side._replace(n_clusters=(5, 0))),
    "no-view": (ValueError, "at least one view", lambda side: side._replace(n_clusters=())),
}


@needs_module
@pytest.mark.parametrize(("error", "message", "spoil"), BAD_SIDES.values(), ids=BAD_SIDES)
def test_bad_side_is_refused(error, message, spoil):
    arguments = good_arguments()
    arguments["user"] = spoil(arguments["user"])
    with pytest.raises(error, match=message):
        native.score_pairs(**arguments)


BAD_ARGUMENTS = {
    "other-dtype": ({"item": cast(make_side(5, (3, 2), 6, seed=2), torch.float32)}, TypeError, r"item\."),
    "int32": ({"user_idx": torch.tensor([0, 1, 2], dtype=torch.int32)}, TypeError, "user_idx must be torch.int64"),
    "float-index": ({"item_idx": torch.tensor([0.0, 1, 2])}, TypeError, "item_idx must be torch.int64"),
    "strided-index": ({"item_idx": torch.zeros(6, dtype=torch.int64)[::2]}, ValueError, "item_idx must be contiguous"),
    "lengths": ({"item_idx": torch.tensor([0, 1])}, ValueError, r"item_idx must have shape \[3\], not \[2\]"),
    "2d-index": ({"user_idx": torch.tensor([[0, 1, 2]])}, ValueError, r"user_idx must have shape \[3\], not \[1, 3\]"),
    "combine": ({"combine": "product"}, ValueError, "combine must be"),
}


@needs_module
@pytest.mark.parametrize(("changes", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_argument_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        native.score_pairs(**good_arguments() | changes)


@needs_module
def test_build_info():
    info = native.build_info()
    assert info.keys() == {"compiler", "simd"}


def test_importing_the_package_does_not_load_the_module():
    script = "import sys, mfdmc_fast, mfdmc_fast.ops.native; sys.exit('mfdmc_fast._cpu' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.fixture
def fail_to_load(monkeypatch):
    """Makes loading the module raise a given error, for the one test."""

    def install(error: ImportError) -> None:
        def import_module(_: str) -> None:
            raise error

        monkeypatch.setattr(native.importlib, "import_module", import_module)
        native._load.cache_clear()

    yield install
    native._load.cache_clear()


def test_failure_to_load_is_explained_and_remembered(fail_to_load, monkeypatch):
    fail_to_load(ImportError("libgomp.so.1: cannot open shared object file"))
    assert "libgomp.so.1" in native.why_unavailable()
    monkeypatch.undo()
    with pytest.raises(BackendUnavailable, match=r"libgomp\.so\.1"):
        native.build_info()


@pytest.mark.parametrize(
    ("present", "message"), [([], "MFDMC_NATIVE=on"), (["_cpu.cpython-39.so"], "another Python version")]
)
def test_missing_module_says_what_to_do(present, message, fail_to_load, monkeypatch, tmp_path):
    for name in present:
        (tmp_path / name).touch()
    (tmp_path / "ops").mkdir()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "ops" / "native.py"))
    fail_to_load(ModuleNotFoundError("No module named 'mfdmc_fast._cpu'"))
    assert message in native.why_unavailable()


@needs_module
@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("n", [1, 37, 2500])
def test_cluster_usage_matches_the_reference(kernels: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels not in native.available_kernels():
        pytest.skip(f"this processor has no {kernels}")
    monkeypatch.setenv("MFDMC_CPU_KERNELS", kernels)
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(n, 13, generator=generator) * 20
    side = SideTensors(logits, torch.zeros(13, 2), (1, 5, 7), None)
    among = torch.rand(n, generator=generator) < 0.7
    for counted in (among, torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)):
        exact = side._replace(assignment_logits=logits.double(), centers=side.centers.double())
        expected = functional.cluster_usage(exact, counted, backend="reference")
        usage = functional.cluster_usage(side, counted, backend="cpu")
        torch.testing.assert_close(usage, expected, rtol=1e-5, atol=1e-9, equal_nan=True)
        of_views = [float(view.sum()) for view in usage.split(side.n_clusters)]
        assert of_views == pytest.approx([1.0 if counted.any() else float("nan")] * 3, nan_ok=True)
    with pytest.raises(TypeError, match="among must be"):
        functional.cluster_usage(side, among.int(), backend="cpu")


def _predictions(seed: int) -> Tensor:
    """A call large enough to be shared out."""
    side = make_side(50, (3, 4), 2, seed)
    idx = torch.arange(2000) % 50
    return native.score_pairs(side, side, 0.0, idx, idx.flip(0), combine="concat")


@needs_module
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_are_started_anew_after_a_fork() -> None:
    torch.set_num_threads(3)
    expected = _predictions(1)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if torch.equal(_predictions(1), expected) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@needs_module
def test_several_python_threads_can_call_at_once() -> None:
    torch.set_num_threads(2)
    expected = [_predictions(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_predictions, [0, 1, 2, 3] * 20))
    assert all(torch.equal(f, expected[i % 4]) for i, f in enumerate(found))
