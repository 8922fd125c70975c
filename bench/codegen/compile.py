"""Compile, without a GPU, exactly what the launchers would launch.

``record`` runs a launcher on CPU tensors with its launches caught instead of run; ``assemble``
specialises one caught launch as Triton's own launcher would (alignment, ones, Nones), compiles it
for a target, and disassembles it with the tools that Triton bundles.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from fastssl_kernels import similarity_lse, similarity_lse_plan
from fastssl_kernels.similarity_lse_rows import _similarity_lse_rows_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.codegen import sass

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    meta: dict

    @property
    def values(self) -> dict[str, Any]:
        """Arguments by name."""
        named = dict(zip(self.kernel.arg_names, self.args, strict=False))
        return named | {k: v for k, v in self.meta.items() if k not in OPTIONS}


class Machine(NamedTuple):
    """Machine code of one kernel and what it needs."""

    name: str
    warps: int
    registers: int  # of a thread
    spills: int  # bytes of stack, and instructions that touch it
    shared: int  # bytes of a program
    code: list[sass.Instruction]


def record(module, device, launcher: str, *args) -> list[Launch]:
    """The launches of ``module.launcher(*args)`` as it would make them on ``device``.

    Without the pass over rows where another op shares it: similarity_lse's own are with it.
    """
    caught = []

    def catch(kernel, *args, grid, warmup, **meta):
        if module is similarity_lse or kernel is not _similarity_lse_rows_kernel:
            caught.append(Launch(kernel, grid, args, meta))

    with (
        patch.object(triton.JITFunction, "run", catch),
        patch.object(similarity_lse_plan, "_device", lambda x: device),
        patch.object(module, "_device", lambda x: device, create=True),  # its own name for it
    ):
        getattr(module, launcher)(*args)
    return caught


def source(launch: Launch) -> ASTSource:
    """The launch specialised to its arguments."""
    kernel, values = launch.kernel, launch.values
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        special = not parameter.do_not_specialize
        if (
            parameter.is_constexpr
            or value is None
            or (special and type(value) is int and value == 1)
        ):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned = True
        elif isinstance(value, float):
            signature[parameter.name] = parameter.annotation_type or "fp32"
            aligned = False
        else:
            signature[parameter.name] = "i32"
            aligned = special and value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def key(launch: Launch) -> str:
    """Equal for launches that compile to the same code."""
    made = source(launch)
    options = {k: v for k, v in launch.meta.items() if k in OPTIONS}
    return f"{made.name} {made.signature} {made.constants} {made.attrs} {options}"


def assemble(launch: Launch, capability: int):
    """The compiled kernel, its disassembly, and its resource usage."""
    options = {k: v for k, v in launch.meta.items() if k in OPTIONS}
    compiled = triton.compile(
        source(launch), target=GPUTarget("cuda", capability, 32), options=options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        return compiled, *(_cuobjdump(flag, cubin.name) for flag in ("-sass", "-res-usage"))


def machine(launch: Launch, capability: int) -> Machine:
    """One launch's machine code for ``sm_<capability>``; the same code once a process."""
    same = f"{capability} {key(launch)}"
    if same not in _made:
        compiled, listing, usage = assemble(launch, capability)
        (made,) = _machines(listing, usage, compiled.metadata.num_warps)
        _made[same] = made._replace(shared=compiled.metadata.shared)
    return _made[same]


_made: dict[str, Machine] = {}


def cuda(path: Path, capability: int) -> list[Machine]:
    """The kernels of a .cu file that takes no torch headers, as nvcc compiles it.

    Their warps are not known from the file: 0. An array that is indexed lives in local memory as a
    spill does, so that here the assembler says which is which.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError(f"{path.name}: nvcc is not on the PATH, so .cu files cannot be compiled")
    arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        command = [nvcc, "-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-Xptxas", "-v"]
        command += ["-o", cubin.name, "-I", str(path.parents[1]), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc does not compile {path.name}:\n{done.stderr.strip()}")
        made = _machines(*(_cuobjdump(flag, cubin.name) for flag in ("-sass", "-res-usage")), 0)
    spilled = {
        name: int(stores) + int(loads)
        for name, stores, loads in re.findall(
            r"entry function '(\S+)'[\s\S]*?(\d+) bytes spill stores, (\d+) bytes spill loads",
            done.stderr,
        )
    }
    return [one._replace(spills=spilled[one.name]) for one in made]


def _machines(listing: str, usage: str, warps: int) -> list[Machine]:
    needs = {
        name: (int(registers), int(stack), int(shared))
        for name, registers, stack, shared in re.findall(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage
        )
    }
    made = []
    for name, code in sass.functions(listing).items():
        registers, stack, shared = needs[name]
        touches = sum(i.stem in sass.LOCAL for i in code)
        made.append(Machine(name, warps, registers, stack + touches, shared, code))
    return made


def _cuobjdump(flag: str, path: str) -> str:
    command = [str(CUOBJDUMP), flag, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
