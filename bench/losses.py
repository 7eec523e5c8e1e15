"""Where Kintsugi loses, by the results that are kept: goals that are missed, and peers that are faster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN = "<!-- losses: begin, written by python -m bench -->"
END = "<!-- losses: end -->"
#: Figures of `peers` that say how many times as fast as a peer we are.
_AGAINST = "live projection against "


def losses(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """(benchmark, figure, measured, what it should be) of each."""
    for document in documents:
        for figure in document["figures"]:
            name, measured = str(figure["figure"]), float(figure["measured"])
            shown = f"{measured:,.{2 if abs(measured) < 100 else 0}f} {figure['unit']}"
            if figure["met"] is False:
                yield document["benchmark"], name, shown, str(figure["goal"])
            elif document["benchmark"] == "peers" and name.startswith(_AGAINST) and measured < 1:
                yield "peers", name, shown, "as fast as the peer"


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """As the page shows them."""
    rows = [f"| `{benchmark}` | {name} | {shown} | {goal} |" for benchmark, name, shown, goal in losses(documents)]
    if not rows:
        return "Nowhere, by the results that are kept."
    return "\n".join(["| benchmark | figure | measured | should be |", "|---|---|---|---|", *rows])


def stored(folder: Path) -> list[dict[str, Any]]:
    """The results that are kept, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def with_losses(page: str, documents: Sequence[Mapping[str, Any]]) -> str:
    """The page with the table of these results in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(documents)}\n{END}{rest.partition(END)[2]}"
