"""Benchmarks: every op and loss beside its peers, interleaved, refused where the answer is wrong.

Not shipped with the package: ``fastssl bench`` finds this folder in a source checkout.
"""
