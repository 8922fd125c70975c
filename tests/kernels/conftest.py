"""Triton decides at import whether its kernels are compiled or interpreted: once a process.

So the interpreter's tests run in a process of their own (or right here, on a CUDA device), and
the compiler's tests run where the interpreter is off.
"""

from __future__ import annotations

import importlib.util

import torch

from fastssl import backends

collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob += ["test_interpreter.py", "test_*_triton.py", "test_*codegen.py"]
elif backends.interpreting():
    from tests.kernels.interpreter import quicken

    quicken()
    collect_ignore_glob += ["test_interpreter.py", "test_*codegen.py"]
elif not torch.cuda.is_available():
    collect_ignore_glob += ["test_*_triton.py"]
