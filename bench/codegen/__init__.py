"""``fastssl bench codegen``: what kernels cost, read from their machine code without a GPU.

``compile`` makes the machine code of what the launchers would launch, ``sass`` reads it, ``chip``
knows the issue rates, ``predict`` puts them together, ``catalogue`` names the kernels and the
problems, ``command`` prints.
"""
