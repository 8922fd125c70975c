"""The house: imports run downward, and no op lacks a room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastssl import backends

ROOT = Path(__file__).parent.parent

# Floors from ../README.md's map; a module may import from its own floor's file or below.
FLOORS = {
    "fastssl._version": 0,
    "fastssl._walk": 0,
    "fastssl.errors": 0,
    "fastssl_kernels": 0,
    "fastssl.reference": 1,
    "fastssl.backends": 1,
    "fastssl.ops": 2,
    "fastssl.distributed": 3,
    "fastssl.functional": 3,
    "fastssl.augment": 3,
    "fastssl.losses": 3,
    "fastssl.prototype_losses": 3,
    "fastssl.regression_losses": 3,
    "fastssl.nn": 3,
    "fastssl.methods": 4,
    "fastssl.optim": 4,
    "fastssl.data": 4,
    "fastssl.evaluation": 4,
    "fastssl.training": 4,
    "fastssl.compat": 4,
    "fastssl.patching": 4,
    "fastssl": 4,
    "fastssl.cli": 5,
    "fastssl.__main__": 5,
}
# Within floor 4: who may know whom.
UPSTAIRS = {
    "fastssl.training": {"fastssl.methods", "fastssl.optim", "fastssl.data"},
    "fastssl.compat": {"fastssl.training"},
    "fastssl.evaluation": {"fastssl.optim", "fastssl.data"},
}


def room(module: str) -> str:
    parts = module.split(".")
    while parts and ".".join(parts) not in FLOORS:
        parts.pop()
    return ".".join(parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("fastssl", "fastssl_kernels")}


def modules():
    for source in (ROOT / "fastssl", ROOT / "kernels"):
        for path in sorted(source.rglob("*.py")):
            base = ROOT if source.name == "fastssl" else source
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_imports_run_downward(name, path):
    mine = room(name)
    for target in imports_of(path):
        theirs = room(target)
        if theirs == "fastssl" and target != "fastssl":
            # `from fastssl import x`, x a name of the package itself: such as its version.
            theirs = "fastssl._version"
        assert FLOORS[theirs] <= FLOORS[mine], f"{name} (floor {FLOORS[mine]}) imports {target}"
        if name != "fastssl" and mine != theirs and FLOORS[mine] == FLOORS[theirs] == 4:
            assert theirs in UPSTAIRS.get(mine, set()) | {"fastssl.evaluation"}, (name, target)


def test_kernels_know_only_torch_and_triton():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in {"torch", "triton", "fastssl_kernels"} | sys.stdlib_module_names


def test_csrc_knows_nothing_of_python():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and "python" not in path.parts:
            assert "Python.h" not in path.read_text()
            assert "pybind11" not in path.read_text()


WITHOUT_GRADIENT = {
    *("augment", "augment_parameters", "ema_update", "lars_step", "similarity_topk", "sinkhorn")
}


@pytest.mark.parametrize("op", backends.ops())
def test_every_op_has_its_rooms(op):
    from fastssl import ops, reference

    assert callable(getattr(ops, op)) or callable(getattr(ops, f"{op}_"))  # in place
    assert callable(getattr(reference, op))
    for room in ("fastssl/ops/{}.py", "fastssl/reference/{}.py", "tests/ops/test_{}.py",
                 "bench/ops/bench_{}.py"):  # fmt: skip
        assert (ROOT / room.format(op)).is_file(), room.format(op)
    implemented = backends._implementations[op]
    if "native" in implemented:
        assert list((ROOT / "csrc/cpu").glob(f"{op}*.cpp"))
    if "triton" in implemented:
        assert list((ROOT / "kernels/fastssl_kernels").glob(f"{op}*.py"))
    for suffix in ("fwd",) if op in WITHOUT_GRADIENT else ("fwd", "bwd"):
        name = f"fastssl::{op}_{suffix}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"), f"{name} has no fake"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


def test_import_is_light():
    """`import fastssl` brings in nothing that only the trainer or the kernels need."""
    code = (
        "import sys, torch; before = set(sys.modules); import fastssl; "
        "heavy = {'triton', 'pydantic', 'sklearn', 'matplotlib', 'yaml', 'rich', 'tensorboard', "
        "'torchvision', 'PIL', 'fastssl.training'}; "
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "[]\n", ran.stderr
