"""Losses over the batch of many ranks: each holds its rows, against the columns of all.

What a loss excludes or pairs lies within a rank's own rows and columns. Over the other ranks'
columns it has plain log-sum-exps, and that of a union is the log-sum-exp of theirs:

    lse_i = log( e^{lse_i over the own columns} + Σ_{other ranks} e^{lse_i over theirs} )

Two ways to the other columns: *gather* them all (memory grows with the ranks), or pass them around
a *ring*, each on its way to the next rank while this one uses it (memory: one rank's columns, and
those arriving). Where rows are their own columns, the ranks' matrix of blocks is symmetric too: of
two ranks one computes their block, and sends the other the sums of its columns.

Gradients: each exchange on the way forward has its adjoint on the way back, so every rank receives
the gradient of the *sum* of what all ranks call ``backward`` on. A loss over the whole batch is the
same number on each of W ranks and so counts W times, which is what DistributedDataParallel's mean
over ranks takes out again: the step is that of one process with the whole batch.
"""

from fastssl.distributed.batch import LOCAL, Group, Local, Ranks, agree, share

__all__ = ["LOCAL", "Group", "Local", "Ranks", "agree", "share"]
