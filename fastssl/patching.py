"""``fastssl.patch("lightly")``: an installed package's losses become fastssl's, until unpatched."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any

# The names in `__all__` of fastssl.compat.<key> stand in for those of these modules.
_HOMES = {
    "gradcache": ("grad_cache",),
    "info_nce_pytorch": ("info_nce",),
    "lightly": ("lightly.loss", "lightly.models.modules.memory_bank", "lightly.models.utils"),
    "lightly_transforms": ("lightly.transforms",),
    "open_clip": ("open_clip.loss",),
    "pytorch_metric_learning": ("pytorch_metric_learning.losses",),
    "solo_learn": ("solo.losses",),
    "timm": ("timm.utils",),
}


@dataclass(eq=False)
class Patch:
    """What a call of :func:`patch` replaced; prints as one line a name.

    As a context manager it takes the replacement back at the end of the block.

    Attributes:
        package: as it was named to :func:`patch`.
        replaced: "lightly.loss.NTXentLoss" → "fastssl.compat.lightly.NTXentLoss", for every place.
    """

    package: str
    replaced: dict[str, str] = field(default_factory=dict)
    _places: list[tuple[ModuleType, str, Any, Any]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the package's own objects back where fastssl's still stand; twice is harmless."""
        for module, name, theirs, ours in self._places:
            if vars(module).get(name) is ours:
                setattr(module, name, theirs)
        self._places.clear()
        if self in _patches:
            _patches.remove(self)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        if not self.replaced:
            return f"{self.package}: nothing was left to replace"
        return "\n".join(f"{theirs} -> {ours}" for theirs, ours in self.replaced.items())

    __repr__ = __str__


_patches: list[Patch] = []


def patch(package: str, *names: str) -> Patch:
    """Let an installed package's losses be fastssl's, for the whole process.

    ``fastssl.patch("lightly")``, before the lines that import or build losses::

        import fastssl
        print(fastssl.patch("lightly"))  # lightly.loss.NTXentLoss -> fastssl.compat.lightly.…

        from lightly.loss import NTXentLoss  # fastssl's

    Every module of the package that holds one of these classes or functions is given fastssl's in
    its place. :func:`unpatch`, or the end of a ``with fastssl.patch(...):`` block, gives its own
    back. Importing fastssl replaces nothing, and patching twice is harmless. What your code
    imported by name before stays as it was; so do objects already built, and derived classes.

    Args:
        package: "gradcache", "info_nce_pytorch", "lightly", "lightly_transforms" (its views, which
            differ from lightly's in what that module says), "open_clip",
            "pytorch_metric_learning", "solo_learn" or "timm"; what each offers is its module in
            ``fastssl.compat``.
        names: replace only these, such as "NTXentLoss"; none: all that ``fastssl.compat`` has.

    Returns:
        What was replaced, to print, to undo, or to use as a context manager.

    Raises:
        ValueError: an unknown package or name.
        ImportError: the package is not installed, or cannot be imported.
    """
    homes, compat = _modules(package)
    found = {name: home for home in homes for name in compat.__all__ if hasattr(home, name)}
    for name in names:
        if name not in compat.__all__:
            known = ", ".join(compat.__all__)
            raise ValueError(f"fastssl.compat.{package} has no {name!r}; it has {known}")
        if name not in found:
            raise ValueError(f"this version of {package} has no {homes[0].__name__}.{name}")
    result = Patch(package)
    for name in names or found:
        _replace(name, found[name], compat, result)
    _patches.append(result)
    return result


def unpatch(package: str | None = None) -> None:
    """Undo :func:`patch`: for one package, or for all. Without a patch it does nothing.

    Raises:
        ValueError: an unknown package.
    """
    if package is not None:
        _check(package)
    for earlier in _patches[::-1]:
        if package in (None, earlier.package):
            earlier.undo()


def _replace(name: str, home: ModuleType, compat: ModuleType, result: Patch) -> None:
    """Wherever a loaded module of the package holds what ``home`` calls by that name, let it hold
    ours."""
    theirs, ours = getattr(home, name), getattr(compat, name)
    if theirs is ours:
        return
    root = home.__name__.split(".")[0]
    for module_name, module in sorted(sys.modules.items()):
        if module is None or module_name.split(".")[0] != root:
            continue
        for there, value in list(vars(module).items()):
            if value is theirs:
                setattr(module, there, ours)
                result._places.append((module, there, theirs, ours))
                result.replaced[f"{module_name}.{there}"] = f"{compat.__name__}.{name}"


def _modules(package: str) -> tuple[list[ModuleType], ModuleType]:
    """The modules that the package's losses are imported from, and their counterpart here."""
    _check(package)
    homes = _HOMES[package]
    root = homes[0].split(".")[0]
    if root not in sys.modules and find_spec(root) is None:
        raise ModuleNotFoundError(f"patch({package!r}): there is no module {root!r} installed here")
    try:
        theirs = [import_module(home) for home in homes]
    except Exception as error:  # a package may fail to import in any way
        raise ImportError(f"patch({package!r}): {homes[0]} does not import: {error}") from error
    return theirs, import_module(f"fastssl.compat.{package}")


def _check(package: str) -> None:
    if package not in _HOMES:
        known = ", ".join(map(repr, _HOMES))
        raise ValueError(f"package must be one of {known}, not {package!r}")
