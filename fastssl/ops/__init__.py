"""The ops: checks, schemas, fake implementations, autograd and dispatch."""

from fastssl.ops.similarity_lse import similarity_lse

__all__ = ["similarity_lse"]
