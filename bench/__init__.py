"""Benchmarks on the real stack: `python -m bench`, or `make bench`. How to read them: docs/benchmarks.md."""
