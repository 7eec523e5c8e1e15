"""`python -m tests.scenarios [--json] [WORDS OF A NAME]`: play the labelled scenarios and print the report."""

from __future__ import annotations

import argparse
import json
import sys

from .model import load_all
from .report import report_of


def main() -> int:
    """Exit 1 when a scenario differs from its label."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("words", nargs="*", help="only scenarios whose name or family holds these words")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    wanted = " ".join(given.words)
    report = report_of(s for s in load_all() if wanted in s.name or wanted in s.family)
    print(json.dumps(report.figures(), indent=2) if given.json else "\n".join(report.lines()))
    return 1 if report.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
