"""setup.py, its compilers left out: what is left of an earlier build when CUDA's kernels fail."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent


@pytest.fixture
def build(monkeypatch, tmp_path):
    """``build_ext --inplace`` over an empty folder; gives what an nvcc that works or not leaves."""
    monkeypatch.chdir(tmp_path)
    Path("fastssl").mkdir()
    for name in ("FASTSSL_BUILD_CPP", "FASTSSL_BUILD_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def build(nvcc: bool, **environment: str) -> set[str]:
        def compiled(command: setuptools.Command) -> None:
            for module in command.extensions:
                if module.name == "fastssl._cuda" and not nvcc:
                    raise RuntimeError("nvcc fails")
                path = Path(command.get_ext_fullpath(module.name))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

        told: dict = {}
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            patched.setattr(cpp_extension.BuildExtension, "build_extensions", compiled)
            patched.setattr(setuptools, "setup", lambda **words: told.update(words))
            runpy.run_path(str(ROOT / "setup.py"))
            command = told["cmdclass"]["build_ext"](setuptools.Distribution(told))
            command.inplace = True
            command.ensure_finalized()
            command.run()
        return {path.name.split(".")[0] for path in Path().glob("fastssl/*.so")}

    return build


def test_no_kernels_of_an_earlier_build(build, capsys):
    assert "_cuda" in build(nvcc=True)
    left = build(nvcc=False)
    assert "_native" in left
    assert "_cuda" not in left
    assert not list(Path("build").rglob("_cuda*.so"))
    assert "left out: nvcc fails" in capsys.readouterr().err


def test_none_either_where_they_are_not_wanted(build):
    build(nvcc=True)
    assert "_cuda" not in build(nvcc=True, FASTSSL_BUILD_CUDA="0")


def test_asked_for_by_name_they_must_build(build):
    with pytest.raises(RuntimeError, match="nvcc fails"):
        build(nvcc=False, FASTSSL_BUILD_CUDA="1")


def test_headers_of_torch_do(build, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pybind11", None)
    assert "_build" in build(nvcc=True)
    assert (Path(torch.__file__).parent / "include" / "pybind11" / "pybind11.h").is_file()
