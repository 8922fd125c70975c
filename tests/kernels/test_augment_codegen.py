"""augment's CUDA kernels compile for what they are meant for: no spills, no product in a sum."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")
FLAGS = ["-O3", "-std=c++20", "-fmad=false", f"-I{ROOT / 'csrc'}"]


def compiled(stem, chip, kind, to):
    source = str(ROOT / "csrc" / "cuda" / f"{stem}.cu")
    command = [NVCC, *FLAGS, f"-arch={chip}", "-Xptxas", "-v", f"-{kind}", source, "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(
    ("stem", "kernels", "most"), [("augment", 4, 65_536 // 640), ("augment_parameters", 1, 128)]
)
def test_compiles_well(stem, kernels, most, chip, tmp_path):
    told = compiled(stem, chip, "cubin", tmp_path / "kernel.cubin")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", told)]
    print(f"{stem} {chip}: {registers} registers")
    assert len(registers) == kernels
    assert max(registers) <= most
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert spills == [("0", "0")] * kernels


def test_parameters_take_no_product_into_a_sum(tmp_path):
    """Their bits are the reference's: each sum and product of doubles is rounded by itself."""
    compiled("augment_parameters", "sm_90", "ptx", tmp_path / "kernel.ptx")
    code = (tmp_path / "kernel.ptx").read_text()
    assert "mul.rn.f64" in code
    assert "fma.rn.f64" not in code


def test_the_binding_is_of_the_stable_abi():
    """It needs no header of CUDA's, and none of torch's but those."""
    include = Path(torch.__file__).parent / "include"
    flags = [
        "-std=c++20",
        "-fsyntax-only",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    source = ROOT / "csrc" / "cuda" / "binding.cpp"
    subprocess.run(["c++", *flags, f"-I{ROOT / 'csrc'}", f"-I{include}", str(source)], check=True)
