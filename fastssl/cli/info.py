"""``fastssl info``: versions, and which implementation serves each op here and why."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import torch

import fastssl
from fastssl import backends

PACKAGES = ("torch", "triton", "numpy", "ninja", "pybind11")


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="fastssl info", description=__doc__).parse_args(argv)
    print(
        f"fastssl {fastssl.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    print(", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print(f"CPU: {torch.get_num_threads()} threads; {_native_build()}")
    print(f"CUDA: {_devices()}")
    forced = backends.forced_backend()
    if forced:
        print(f"FASTSSL_BACKEND asks for {forced!r}")
    for op in backends.ops():
        print(f"\n{op}")
        for device in ("cpu", "cuda"):
            absent = device == "cuda" and not torch.cuda.is_available()
            try:
                serving = backends.select(op, device)
                would = "would be served by" if absent else "served by"
                print(f"  {device:5} {would} {serving}{' (no CUDA device here)' * absent}")
            except backends.BackendError as error:
                serving = None
                print(f"  {device:5} {error}")
            for name in backends.NAMES:
                if name != serving:
                    reason = backends.why_not(name, op, device) or _passed_over(name, device)
                    print(f"        not {name}: {reason}")
    return 0


def _passed_over(name: str, device: str) -> str:
    """Why a backend that could serve does not."""
    if backends.forced_backend():
        return f"{backends.forced_backend()!r} was asked for"
    if name == "reference":
        return "plain PyTorch writes the whole matrix; it serves where nothing else can"
    return f"use_backend({name!r}) takes it for {device} tensors; a faster one is here"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _native_build() -> str:
    try:
        from fastssl import _build
    except ImportError as error:
        return f"no native build ({error})"
    return (
        f"native kernels use {_build.selected_isa()} of {', '.join(_build.compiled_isas())}; "
        + (f"built with {_build.compiler()}")
    )


def _devices() -> str:
    if not torch.cuda.is_available():
        return "none (torch sees no CUDA device)"
    names = []
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        names.append(f"{torch.cuda.get_device_name(i)} (sm_{major}{minor})")
    return ", ".join(names)
