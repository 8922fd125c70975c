"""Which implementation serves, how to ask for one, and what is said when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl import backends
from fastssl.ops import similarity_lse

ROOT = Path(__file__).parent.parent


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"} | environment,
    )


def test_the_native_library_is_built():
    assert backends.unavailable("native") is None
    assert backends.select("similarity_lse", "cpu") == "native"


def test_use_backend_nests_and_restores():
    assert backends.forced_backend() is None
    with fastssl.use_backend("reference"):
        assert backends.select("similarity_lse", "cpu") == "reference"
        with fastssl.use_backend("native"):
            assert backends.select("similarity_lse", "cpu") == "native"
        with fastssl.use_backend(None):
            assert backends.forced_backend() is None
        assert backends.forced_backend() == "reference"
    assert backends.forced_backend() is None


def test_use_backend_is_seen():
    """Each backend really computes: the reference's result differs from native's in a last bit."""
    x = torch.randn(64, 33)
    results = []
    for name in ("reference", "native"):
        with fastssl.use_backend(name):
            results.append(similarity_lse(x, None, 20.0)[0])
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    assert not torch.equal(*results)


def test_asking_for_what_cannot_serve():
    with pytest.raises(ValueError, match="one of reference, native, triton, not 'cuda'"):
        fastssl.use_backend("cuda").__enter__()
    if not backends.interpreting() and backends.unavailable("triton") is None:
        with (
            fastssl.use_backend("triton"),
            pytest.raises(fastssl.BackendError, match="TRITON_INTERPRET=1"),
        ):
            similarity_lse(torch.randn(3, 4))
    assert "CPU tensors, not cuda" in backends.why_not("native", "similarity_lse", "cuda")


def test_environment_variable():
    ask = "import fastssl; print(fastssl.backends.select('similarity_lse', 'cpu'))"
    assert run(ask, FASTSSL_BACKEND="reference").stdout == "reference\n"
    assert run(ask, FASTSSL_BACKEND="").stdout == "native\n"
    wrong = run(ask, FASTSSL_BACKEND="fast")
    assert wrong.returncode != 0
    assert "FASTSSL_BACKEND must be one of" in wrong.stderr


def test_without_a_native_build(tmp_path):
    """A pure-Python copy falls back to the reference, says why, and refuses native by name."""
    shutil.copytree(ROOT / "fastssl", tmp_path / "fastssl", ignore=shutil.ignore_patterns("*.so"))
    code = (
        "import torch, fastssl\n"
        "print(fastssl.backends.select('similarity_lse', 'cpu'))\n"
        "print(fastssl.functional.nt_xent(torch.eye(3), torch.eye(3)).item())\n"
        "try:\n"
        "    with fastssl.use_backend('native'): pass\n"
        "except fastssl.BackendError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    served, loss, error = result.stdout.splitlines()
    assert served == "reference"
    assert float(loss) == pytest.approx(0.43, abs=0.01)
    assert "was not built" in error


def test_no_instruction_set_is_assumed():
    """Nothing outside the per-instruction-set files may use more than the baseline."""
    assert "march" not in (ROOT / "setup.py").read_text()


def test_info_says_who_serves(capsys):
    from fastssl.cli import main

    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "similarity_lse" in out
    assert "cpu   served by native" in out
    assert "not native: native kernels serve CPU tensors, not cuda" in out
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err
