"""Triton kernels of fastssl: one module an op, imports torch and triton only."""

import triton  # noqa: F401  (a missing Triton is reported once, here)
