"""Which errors a rule is for: names and globs (`*`, `?`, `[ab]`), each compiled once.

Matching takes time linear in the text for each `*`: `fnmatch.translate` writes expressions that do not come back to a
`*` once what follows it was found. Names are case-sensitive, the message is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import translate

#: A message is matched on this many characters; what tells errors apart stands at the front.
MESSAGE_CHARS_MAX = 1_000
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name or a glob."""

    text: str
    ignore_case: bool = False
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flags = re.IGNORECASE if self.ignore_case else 0
        object.__setattr__(self, "_compiled", re.compile(translate(self.text), flags))

    def fits(self, text: str) -> bool:
        """Whether the whole text is what the pattern says."""
        return self._compiled.match(text) is not None

    def covers(self, other: Pattern) -> bool:
        """Whether this fits whatever the other fits. Never a wrong yes; a no may be wrong for sets of characters."""
        if not _GLOB & set(other.text):
            return self.fits(other.text)
        mine, theirs = list(self._tokens()), list(other._tokens())
        # reach[j]: the first i of my tokens fit any text of their first j tokens
        reach = [True] + [False] * len(theirs)
        for token in mine:
            if token == "*":
                for j, _ in enumerate(theirs):
                    reach[j + 1] = reach[j + 1] or reach[j]
            else:
                fits = [theirs[j] != "*" and (token == "?" or token == theirs[j]) for j in range(len(theirs))]
                reach = [False] + [reach[j] and fits[j] for j in range(len(theirs))]
        return reach[-1]

    def _tokens(self) -> Iterator[str]:
        """`*`, `?`, a set as it is written, or a character, whose token is two long when it could be taken for one."""
        text, at = self.text, 0
        while at < len(text):
            if text[at] == "[":
                end = text.find("]", at + 2 + (text[at + 1 : at + 2] == "!"))
                if end > 0:
                    yield text[at : end + 1]
                    at = end + 1
                    continue
            yield text[at] if text[at] in "*?" else f"={self._folded(text[at])}"
            at += 1

    def _folded(self, character: str) -> str:
        lower = character.lower()
        return lower if self.ignore_case and len(lower) == 1 else character


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What an error must be like; None fits all."""

    error_type: Pattern | None = None
    workflow_type: Pattern | None = None
    step: Pattern | None = None
    error_code: Pattern | None = None
    message: Pattern | None = None

    def fits(self, error_type: str, workflow_type: str, step_id: str, error_code: str, message: str) -> bool:
        """Whether an error is one of these. No message, as where it is sealed, fits no pattern of a message."""
        return (
            (self.error_type is None or self.error_type.fits(error_type))
            and (self.workflow_type is None or self.workflow_type.fits(workflow_type))
            and (self.step is None or self.step.fits(step_id))
            and (self.error_code is None or self.error_code.fits(error_code))
            and (self.message is None or (message != "" and self.message.fits(message[:MESSAGE_CHARS_MAX])))
        )

    def misses(self, error_type: str, workflow_type: str, step_id: str, error_code: str, message: str) -> list[str]:
        """What does not fit, in words; empty exactly when the error `fits`."""
        texts = (error_type, workflow_type, step_id, error_code, message[:MESSAGE_CHARS_MAX])
        return [
            f"{name} {part.text!r}" if text or name != "message" else "no message that can be read"
            for (name, part), text in zip(self.parts(), texts, strict=True)
            if part is not None and not ((text or name != "message") and part.fits(text))
        ]

    def covers(self, other: Match) -> bool:
        """Whether this fits whatever the other fits; a no may be wrong, as in `Pattern.covers`."""
        return all(
            mine is None or (theirs is not None and mine.covers(theirs))
            for (_, mine), (_, theirs) in zip(self.parts(), other.parts(), strict=True)
        )

    def parts(self) -> tuple[tuple[str, Pattern | None], ...]:
        """The patterns, by the name of what they are matched with."""
        return (
            ("error_type", self.error_type),
            ("workflow_type", self.workflow_type),
            ("step", self.step),
            ("error_code", self.error_code),
            ("message", self.message),
        )

    def __str__(self) -> str:
        given = [f"{name} {part.text!r}" for name, part in self.parts() if part is not None]
        return ", ".join(given) or "any error"
