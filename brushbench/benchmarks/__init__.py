"""Benchmarks, one loader a file; :mod:`brushbench.benchmarks.base` says how to write another."""
