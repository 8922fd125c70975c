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


# They begin first, so that no process is left alone with one of them (the Makefile has xdist keep
# this order).
LONGEST = (
    "test_methods_learn.py",
    "test_interpreter.py",
    "test_make_gpu.py",
    "test_codegen.py",
    "test_similarity_softplus_codegen.py",
    "test_recipe.py",
    "test_instruction_sets.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
