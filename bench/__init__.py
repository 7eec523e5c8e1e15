"""Benchmarks of the figures in the design, with committed results: `make bench`."""
