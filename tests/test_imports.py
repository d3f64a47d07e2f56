"""Who imports whom, read from the source: layers, no cycles, and nothing heavy on `import mfdmc_fast`."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mfdmc_fast

PACKAGE = Path(mfdmc_fast.__file__).parent
LAYERS: dict[str, int] = {
    **dict.fromkeys(["errors", "environment", "config", "files", "plain_values"], 0),
    **dict.fromkeys(["data", "metrics", "ops", "tensor_files"], 1),
    **dict.fromkeys(["distributed", "model", "memory", "shared_memory"], 2),
    **dict.fromkeys(["checkpoints", "content_checks", "epochs", "optim", "pruning", "scoring", "steps"], 3),
    **dict.fromkeys(["history", "run_state", "sharding"], 3),
    **dict.fromkeys(["device_batches", "device_epochs", "device_validation"], 3),
    **dict.fromkeys(["fold_in", "training"], 4),
    **dict.fromkeys(["bayesian", "interpret"], 5),
    **dict.fromkeys(["progress", "serialization", "estimator"], 6),
    **dict.fromkeys(["adapters", "evaluate", "export", "report", "tuning"], 7),
    **dict.fromkeys(["cli", "__main__"], 8),
}
OPS_ORDER = [
    "types",
    "reference",
    "reference_gibbs",
    "native",
    "cuda",
    "cuda_training",
    *(
        f"triton_kernels{kernels}"
        for kernels in (
            "",
            ".launch",
            ".device_code",
            ".grouping",
            ".deal",
            ".entity_forward",
            ".rating_pass",
            ".entity_backward",
            ".centers",
            ".batch_loss",
            ".score_pairs",
            ".top_items",
            ".cluster_usage",
        )
    ),
    "triton_backend",
    "autograd",
    "dispatch",
    "checks",
    "posterior",
    "functional",
]
# their annotations name things that only a type checker loads
MAY_CHECK_TYPES = ("__init__", "data.")
# packages that load their names on first use
LAZY = ("interpret",)


def module_names() -> list[str]:
    """Every module below the package, dotted, packages by their own name; the package itself is `__init__`."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts))
    return names


MODULES = module_names()


def source_of(module: str) -> ast.Module:
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(module: str) -> set[str]:
    """Full names of everything that a module imports, also inside functions, without blocks for type checkers."""
    found: set[str] = set()
    pending: list[ast.AST] = [source_of(module)]
    while pending:
        node = pending.pop()
        if is_type_checking(node) and (module in LAZY or module.startswith(MAY_CHECK_TYPES)):
            assert isinstance(node, ast.If)
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute here"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return found


def own_imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports; `__init__` for the package itself."""
    found = set()
    for name in imports_of(module):
        head, _, rest = name.partition(".")
        if head != "mfdmc_fast":
            continue
        while rest and rest not in MODULES:  # a name inside a module
            rest = rest.rpartition(".")[0]
        found.add(rest or "__init__")
    return found


def layer_of(module: str) -> int:
    return LAYERS[module.partition(".")[0]]


LAYERED = [name for name in MODULES if name not in ("__init__", "testing")]


def test_every_module_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in LAYERED} == set(LAYERS)


@pytest.mark.parametrize("module", LAYERED)
def test_a_module_imports_from_its_own_or_lower_layers(module: str) -> None:
    for imported in own_imports_of(module):
        if imported == "__init__":
            names = {name for name in imports_of(module) if name.count(".") <= 1}
            allowed = {"mfdmc_fast", "mfdmc_fast.__version__"} | {f"mfdmc_fast.{name}" for name in MODULES}
            assert {name for name in names if name.startswith("mfdmc_fast")} <= allowed
            continue
        assert imported != "testing", f"{module} imports testing, which is for tests and benchmarks"
        assert layer_of(imported) <= layer_of(module), f"{module} imports {imported} of a higher layer"
        if layer_of(module) == 0:
            assert imported in LAYERS


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("data", "metrics"))])
def test_data_and_metrics_know_no_kernels(module: str) -> None:
    assert not [name for name in own_imports_of(module) if name.startswith("ops")]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("ops.")])
def test_ops_import_leftwards_only(module: str) -> None:
    own = OPS_ORDER.index(module.removeprefix("ops."))
    for imported in own_imports_of(module):
        if imported.startswith("ops."):
            assert OPS_ORDER.index(imported.removeprefix("ops.")) < own, f"{module} imports {imported}"
        else:
            assert imported in ("errors", "environment", "config", "files", "ops"), f"{module} imports {imported}"


def test_the_oracle_imports_torch_and_types_alone() -> None:
    foreign = {name.partition(".")[0] for name in imports_of("ops.reference")}
    assert foreign - set(sys.stdlib_module_names) == {"torch", "mfdmc_fast"}
    assert own_imports_of("ops.reference") == {"ops.types"}


def test_testing_imports_torch_and_ops_alone() -> None:
    foreign = {name.partition(".")[0] for name in imports_of("testing")} - set(sys.stdlib_module_names)
    assert foreign == {"torch", "mfdmc_fast"}
    assert all(name.startswith("ops") for name in own_imports_of("testing"))
    assert not [name for name in MODULES if "testing" in own_imports_of(name)]


def test_there_are_no_cycles() -> None:
    graph = {name: own_imports_of(name) - {"__init__"} for name in MODULES if name != "__init__"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_only_init_and_data_have_blocks_for_type_checkers() -> None:
    having = [name for name in MODULES if any(map(is_type_checking, ast.walk(source_of(name))))]
    assert all(name in LAZY or name.startswith(MAY_CHECK_TYPES) for name in having), having


def test_the_check_sees_imports_inside_functions_and_of_names() -> None:
    assert "progress" in own_imports_of("estimator.base")
    assert "safetensors.torch.save_file" in imports_of("tensor_files")
    assert {"__init__", "metrics", "data"} <= own_imports_of("estimator.base")
    assert "pyarrow" in imports_of("data.readers")


@pytest.mark.parametrize("statement", ["import mfdmc_fast", "from mfdmc_fast.ops import functional, reference"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    heavy = "'sklearn', 'pyarrow', 'typer', 'rich', 'mfdmc_fast._cpu', 'mfdmc_fast._cuda', 'triton'"
    heavy += ", 'torch'" if statement == "import mfdmc_fast" else ""
    program = f"import sys; {statement}; print([name for name in ({heavy}) if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_every_public_name_resolves(module: str) -> None:
    if "triton_kernels" in module or module.startswith("device_"):
        pytest.importorskip("triton")
    loaded = mfdmc_fast if module == "__init__" else importlib.import_module(f"mfdmc_fast.{module}")
    names = getattr(loaded, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(loaded, name) is not None


def test_public_names_of_the_package() -> None:
    assert set(dir(mfdmc_fast)) == set(mfdmc_fast.__all__)
    assert set(mfdmc_fast.__all__) - {"__version__"} == set(mfdmc_fast._HOME_OF)
    star: dict[str, object] = {}
    exec("from mfdmc_fast import *", star)
    assert set(mfdmc_fast.__all__) <= set(star)
    with pytest.raises(AttributeError, match="module 'mfdmc_fast' has no attribute 'MFDMCX'"):
        mfdmc_fast.MFDMCX  # noqa: B018


def test_the_names_for_type_checkers_are_the_public_names() -> None:
    block = next(node for node in source_of("__init__").body if is_type_checking(node))
    names = {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(mfdmc_fast.__all__) - {"__version__"}
