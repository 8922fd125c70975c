"""Shared set-up: unwritten memory shows, and the suite is repeatable."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Fill every ``torch.empty`` with NaN (integers: the largest), so unwritten output shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_configure(config):
    # Inductor's default of one compile worker a core buys nothing on two cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
