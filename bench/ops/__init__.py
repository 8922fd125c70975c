"""Benchmarks of the ops, a file each."""
