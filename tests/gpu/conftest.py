"""One set of tests for two places: a CUDA device, and a rehearsal by Triton's interpreter.

Without a CUDA device everything here is skipped, unless ``TRITON_INTERPRET=1`` asks for the
rehearsal: the same bodies on CPU tensors at tiny sizes, through the same Triton kernels.
"""

from __future__ import annotations

import pytest
import torch

from fastssl import backends

# Largest rows × columns × features that the interpreter is asked for.
TINY = 1 << 15


@pytest.fixture
def device():
    """Where the tensors live: "cuda", or "cpu" while rehearsing."""
    if torch.cuda.is_available():
        return "cuda"
    if backends.interpreting():
        return "cpu"
    pytest.skip("no CUDA device")


@pytest.fixture
def cuda(device):
    """For what only a CUDA device has: streams, graphs, its allocator."""
    if device != "cuda":
        pytest.skip("no CUDA device")
    return device


@pytest.fixture(autouse=True)
def by_triton(request):
    """Serve every op by Triton, or fail: a quiet fall back to the reference proves nothing."""
    if not (torch.cuda.is_available() or backends.interpreting()):
        yield
        return
    with backends.use_backend("triton"):
        yield


@pytest.fixture
def fits(device):
    """Skip what the interpreter would take minutes for."""

    def check(rows: int, columns: int, features: int) -> None:
        if device == "cpu" and rows * columns * features > TINY:
            pytest.skip("too large for the interpreter")

    return check


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
