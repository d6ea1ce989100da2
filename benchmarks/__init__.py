"""Holds scripts that measure; see benchmarks/README.md."""
