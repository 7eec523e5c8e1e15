"""The policy: limits, timeouts, and per error type an ordered, bounded ladder of repairs."""

from __future__ import annotations

from .load import default_policy, default_text, load_policy, parse_policy
from .model import Backoff, Ladder, Policy, Rule, Rung

__all__ = [
    "Backoff",
    "Ladder",
    "Policy",
    "Rule",
    "Rung",
    "default_policy",
    "default_text",
    "load_policy",
    "parse_policy",
]
