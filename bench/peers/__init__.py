"""What one would use instead of Kintsugi's projector, with the settings it is measured with."""

from .measure import BENCHMARK

__all__ = ["BENCHMARK"]
