"""The short forms of scenarios: `fail BuildError after 3s`, `ignore 2 times`, `run deploy twice`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: "always": as many runs or commands as any scenario makes.
ALWAYS = 1_000
#: How long a run takes when nothing is said.
TAKES_MS = 1_000


def duration_ms(value: object) -> int:
    """`200ms`, `30s`, `5m`, `2h`, `1d`."""
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", str(value))
    if match is None:
        raise ValueError(f"{value!r} is no duration; write 200ms, 30s, 5m, 2h or 1d")
    return int(match[1]) * _UNITS_MS[match[2]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of a step ends.

    `kind`: ok, fail, hang (alive, never ends), die (its process is gone), vanish (it completes, then its process is
    gone), lose (ends without knowing whether it took effect), corrupt (writes a damaged checkpoint, then goes on).
    """

    kind: str
    code: str = ""
    dependency: str = ""
    after_ms: int = TAKES_MS
    #: Nothing in the state, or in inputs and outputs, differs from the run before.
    unchanged: bool = False
    #: The run took effect outside, although nobody saw its end.
    done: bool = False
    #: Goes on and reports, although another run has replaced it.
    zombie: bool = False


_OUTCOMES = re.compile(
    r"(?:(?P<always>always) )?"
    r"(?:(?P<ok>ok)(?P<unchanged> unchanged)?|fail (?P<code>[\w.]+)(?: of (?P<dependency>[\w-]+))?"
    r"|(?P<hang>hang|die|vanish)(?P<effect> after its effect)?|lose track(?P<lost_done> of its effect)?"
    r"|(?P<corrupt>corrupt))"
    r"(?: after (?P<after>\d+\w+))?(?P<zombie> even if replaced)?(?:,? (?P<times>\d+) times)?"
)


def parse_outcome(text: str) -> list[Outcome]:
    """One outcome, several times where it says so."""
    m = _OUTCOMES.fullmatch(text)
    if m is None:
        raise ValueError(
            f"{text!r} is no outcome; write ok, ok unchanged, fail CODE, fail CODE of DEPENDENCY, hang, die, vanish, "
            "lose track, lose track of its effect, corrupt; then `after 3s`, `even if replaced`, `2 times`"
        )
    if m["ok"]:
        kind = "ok"
    elif m["code"]:
        kind = "fail"
    else:
        kind = m["hang"] or ("corrupt" if m["corrupt"] else "lose")
    made = Outcome(
        kind=kind,
        code=m["code"] or "",
        dependency=m["dependency"] or "",
        after_ms=duration_ms(m["after"]) if m["after"] else TAKES_MS,
        unchanged=m["unchanged"] is not None,
        done=kind == "ok" or m["effect"] is not None or m["lost_done"] is not None,
        zombie=m["zombie"] is not None,
    )
    return [made] * (ALWAYS if m["always"] else int(m["times"] or 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service does with a command: carry_out, refuse, ignore, lie (accept, and never finish), cannot_tell."""

    kind: str
    reason: str = ""
    late_ms: int = 0
    twice: bool = False


_ANSWERS = re.compile(
    r"(?:(?P<always>always) )?(?:(?P<kind>carry out|ignore|lie|cannot tell)|refuse(?: (?P<reason>\w+))?)"
    r"(?:,? (?P<late>\d+\w+) late)?(?P<twice>,? answer twice)?(?:,? (?P<times>\d+) times)?"
)


def parse_answer(text: str) -> list[Answer]:
    """One answer, several times where it says so."""
    m = _ANSWERS.fullmatch(text)
    if m is None:
        raise ValueError(
            f"{text!r} is no answer; write carry out, refuse, refuse REASON, ignore, lie or cannot tell; "
            "then `20s late`, `answer twice`, `2 times`"
        )
    made = Answer(
        kind=(m["kind"] or "refuse").replace(" ", "_"),
        reason=m["reason"] or "",
        late_ms=duration_ms(m["late"]) if m["late"] else 0,
        twice=m["twice"] is not None,
    )
    return [made] * (ALWAYS if m["always"] else int(m["times"] or 1))


@dataclass(frozen=True, slots=True)
class Person:
    """An operator's answer to the next intervention."""

    #: "nobody": the deadline of the intervention passes.
    decision: str
    after_ms: int = 0
    to_step: str = ""


_DECISIONS = ("retry", "retry_edited", "skip", "alternative", "rollback", "restart", "cancel", "approve", "escalate")


def parse_person(text: object) -> Person:
    """`retry after 10m`, `rollback to build`, `nobody answers`."""
    if text == "nobody answers":
        return Person("nobody")
    m = re.fullmatch(rf"({'|'.join(_DECISIONS)})(?: to (\w+))?(?: after (\d+\w+))?", str(text))
    if m is None:
        known = ", ".join(_DECISIONS)
        raise ValueError(
            f"{text!r} is no answer of a person; write `nobody answers` or one of {known}, then `after 10m`"
        )
    return Person(m[1], duration_ms(m[3]) if m[3] else 60_000, m[2] or "")


@dataclass(frozen=True, slots=True)
class Never:
    """What must not happen; `text` as the scenario says it."""

    text: str
    what: str
    subject: str = ""
    count: int = 0

    @property
    def about_step(self) -> bool:
        """Whether `subject` is a step."""
        return self.what in ("run", "run_twice", "effect_twice", "undo", "undo_twice", "skip")


_NEVER = (
    ("run_twice", r"run (\w+) twice"),
    ("run", r"run (\w+)"),
    ("effect_twice", r"effect of (\w+) twice"),
    ("undo_twice", r"undo (\w+) twice"),
    ("undo", r"undo (\w+)"),
    ("skip", r"skip (\w+)"),
    ("command", r"command (\w+)"),
    ("strategy", r"strategy (\w+)"),
    ("error", r"error (\w+)"),
    ("attempts", r"more than (\d+) attempts?"),
    ("commands", r"more than (\d+) commands?"),
    ("errors", r"more than (\d+) errors?"),
    ("interventions", r"more than (\d+) interventions?"),
    ("intervention", r"intervention"),
    ("anything", r"anything"),
    ("warning", r"warning"),
)


def parse_never(text: object) -> Never:
    """`run deploy twice`, `command RestartWorkflow`, `more than 3 attempts`, `intervention`, `anything`."""
    for what, pattern in _NEVER:
        m = re.fullmatch(pattern, str(text))
        if m is not None:
            subject = m[1] if m.groups() else ""
            return Never(str(text), what, subject, int(subject) if subject.isdigit() else 0)
    known = "; ".join(pattern.replace(r"(\w+)", "NAME").replace(r"(\d+)", "N") for _, pattern in _NEVER)
    raise ValueError(f"{text!r} cannot be watched for; write one of: {known}")
