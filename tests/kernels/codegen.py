"""Compile, without a GPU, exactly what the launchers would launch, and read what came out.

``record`` runs a launcher on CPU tensors with its launches caught instead of run; ``build``
specialises one caught launch as Triton's own launcher would (alignment, ones, Nones) and
compiles it for a target; the figures come from ptxas and the disassembler that Triton bundles.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    meta: dict


class Built(NamedTuple):
    name: str
    registers: int
    spills: int  # bytes stored and loaded
    shared: int  # bytes
    sass: Counter  # opcode → count
    text: str  # the disassembly
    log: str  # ptxas


def record(module, device, launcher: str, *args) -> list[Launch]:
    """The launches of ``module.launcher(*args)`` as it would make them on ``device``."""
    caught = []

    def catch(kernel, grid, *args, **meta):
        caught.append(Launch(kernel, grid, args, {**meta, "enable_fp_fusion": False}))

    before = module._launch, module._device
    module._launch, module._device = catch, lambda x: device
    try:
        getattr(module, launcher)(*args)
    finally:
        module._launch, module._device = before
    return caught


def source(launch: Launch) -> ASTSource:
    """The launch specialised to its arguments."""
    kernel = launch.kernel
    values = dict(zip(kernel.arg_names, launch.args, strict=False)) | {
        k: v for k, v in launch.meta.items() if k not in OPTIONS
    }
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
            signature[parameter.name] = "fp32"
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


def build(launch: Launch, capability: int) -> Built:
    """Compile one launch for ``sm_<capability>`` and read registers, spills, memory, opcodes."""
    options = {k: v for k, v in launch.meta.items() if k in OPTIONS}
    compiled = triton.compile(
        source(launch), target=GPUTarget("cuda", capability, 32), options=options
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        log = _run(
            Path(get_ptxas(capability).path),
            "-v",
            f"--gpu-name={arch}",
            ptx,
            "-o",
            Path(folder) / "again",
        )
        sass = _run(TOOLS / "cuobjdump", "-sass", cubin)
    opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9.]*)", sass))
    return Built(
        name=compiled.metadata.name,
        registers=int(re.search(r"Used (\d+) registers", log).group(1)),
        spills=sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
        shared=compiled.metadata.shared,
        sass=opcodes,
        text=sass,
        log=log,
    )


def _run(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0].name}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr
