"""Other packages' names, signatures, defaults and layouts over fastssl's losses.

One module a package, importable without it: ``from fastssl.compat.lightly import NTXentLoss``.
:func:`fastssl.patch` puts them into the installed package, so that its users' code need not change.
"""
