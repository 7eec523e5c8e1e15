"""Reads the pages: code blocks, tables, links, headings. Plain Markdown, as these pages use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^(?P<mark>```+)(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=mark)[ ]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    body: str


def name_of(page: Path) -> str:
    """How a test calls a page."""
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """The page."""
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Fenced blocks, in order."""
    return [Block(m["language"], m["body"]) for m in _FENCE.finditer(text)]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def sections(text: str) -> dict[str, str]:
    """Heading, without backticks, to the text up to the next heading of any level."""
    parts = _HEADING.split(prose(text))
    return {head.replace("`", ""): body for head, body in zip(parts[1::2], parts[2::2], strict=True)}


def anchors(text: str) -> set[str]:
    """The fragments that headings can be linked by."""
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in _HEADING.findall(prose(text))}


def code_spans(text: str) -> list[str]:
    """What stands in backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Targets of inline links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def rows(section: str) -> Iterator[list[str]]:
    """Cells of the tables' rows, without heads and rulers; an escaped bar stays in its cell."""
    lines = [line.strip() for line in section.splitlines()]
    for number, line in enumerate(lines):
        ruler = re.fullmatch(r"\|[-| :]+\|", line)
        head = number + 1 < len(lines) and re.fullmatch(r"\|[-| :]+\|", lines[number + 1])
        if line.startswith("|") and not ruler and not head:
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def bare(cell: str) -> str:
    """A cell without backticks."""
    return cell.replace("`", "")
