"""Raw torch ops, one stem each: checks, schema, fake, autograd, dispatch."""

from fastssl.ops.similarity_lse import similarity_lse, similarity_lse_both

__all__ = ["similarity_lse", "similarity_lse_both"]
