"""The torch operator namespace ``fastssl``: one schema each, implementations by device.

Python defines the schemas; the native library registers its CPU kernels when it loads, Triton
launchers are registered here for CUDA, and plain PyTorch serves every other case.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from fastssl import backends

LIBRARY = torch.library.Library("fastssl", "DEF")


def define(
    schema: str,
    *,
    fake: Callable,
    reference: Callable,
    module: str | None = None,
) -> None:
    """Define raw op ``schema`` with its fake and fallback.

    Args:
        schema: as ``torch.library.Library.define`` takes it.
        fake: shapes and dtypes of the result, for tracing.
        reference: serves devices that no kernel serves.
        module: stem of the module in ``fastssl_kernels`` with ``launch_<raw op>``, or None.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"fastssl::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if module is not None:
        LIBRARY.impl(name, triton_launcher(name, module), "CUDA")


def triton_launcher(name: str, module: str) -> Callable:
    """The Triton implementation of raw op ``name``, imported at its first call."""

    def launch(*args):
        reason = backends.unavailable("triton")
        if reason:
            raise backends.BackendError(f"fastssl::{name} on CUDA needs Triton: {reason}")
        return getattr(import_module(f"fastssl_kernels.{module}"), f"launch_{name}")(*args)

    return launch
