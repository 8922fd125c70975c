"""Benchmarks of the losses, a file each."""
