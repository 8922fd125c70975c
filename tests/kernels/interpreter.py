"""Triton's interpreter without what it spends on nothing, which is half of its time.

The numbers stay the same, and a Triton that has not these names stays as it is.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    # int32 sums are taken in int64 too, for an assertion that only debugging turns on.
    builder = getattr(interpreter, "interpreter_builder", None)
    if hasattr(getattr(builder, "options", None), "sanitize_overflow"):
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    # Every call of a helper searches and patches the language as the kernel around it did.
    if hasattr(interpreter, "_patch_lang"):
        interpreter._patch_lang = _patched_once(interpreter._patch_lang)


def _patched_once(patch):
    names = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # what any kernel may see

    def patch_lang(fn):
        running = not tl.core.is_builtin(tl.load)
        return SimpleNamespace(restore=lambda: None) if running else patch(names)

    return patch_lang
