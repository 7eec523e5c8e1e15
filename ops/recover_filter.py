"""A small language that selects open errors: `type=timeout and age<1h and not step~deploy*`.

    expression  :=  and-part { "or" and-part }
    and-part    :=  not-part { "and" not-part }
    not-part    :=  "not" not-part  |  "(" expression ")"  |  field operator value

It becomes SQL in which every value is a parameter: what was typed is in no statement. A field that is empty equals
nothing, so `!=` holds for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import sql

from schemas.errors import ConfigError
from schemas.ids import uuid_bytes

#: Far beyond what a person types; a parser that recurses needs a bound.
CHARS_MAX = 4_000
NESTED_MAX = 32
COMPARISONS_MAX = 64

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<open>\()|(?P<close>\))|(?P<operator><=|>=|!=|=|<|>|~)
    |(?P<quoted>"[^"]*"|'[^']*')|(?P<word>[^\s()<>=!~"']+)""",
    re.VERBOSE,
)
_DURATION = re.compile(r"(\d{1,9})(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_TEXT = ("=", "!=", "~")
_ORDER = ("=", "!=", "<", "<=", ">", ">=")


class FilterError(ConfigError):
    """What was typed is no filter. `column`: where, from 0."""

    def __init__(self, text: str, column: int, why: str) -> None:
        super().__init__(f"{why}\n  {text[:CHARS_MAX]}\n  {' ' * column}^")
        self.column = column
        self.why = why


@dataclass(frozen=True, slots=True)
class Compare:
    """`field operator value`."""

    field: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: Node


@dataclass(frozen=True, slots=True)
class Both:
    """Both parts hold."""

    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Either:
    """One part holds at least."""

    left: Node
    right: Node


Node = Compare | Not | Both | Either


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


class _Field(NamedTuple):
    """A field: its expression, the operators that it takes, and a value's way into a parameter (None: it is none)."""

    expression: sql.SQL
    operators: tuple[str, ...]
    parse: Callable[[str], Any]
    example: str


def _seconds(text: str) -> int | None:
    found = _DURATION.fullmatch(text)
    return None if found is None else int(found[1]) * _SECONDS[found[2]]


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _truth(text: str) -> bool | None:
    return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower())


def _id(text: str) -> str | None:
    try:
        uuid_bytes(text.lower())
    except ValueError:
        return None
    return text.lower()


def _text(text: str) -> str | None:
    return None if "\x00" in text else text


def _status(text: str) -> str | None:
    return text if text in ("open", "recovering", "waiting_for_human") else None


FIELDS = {
    "type": _Field(sql.SQL("e.error_type"), _TEXT, _text, "timeout"),
    "code": _Field(sql.SQL("e.error_code"), _TEXT, _text, "TIMEOUT"),
    "workflow_type": _Field(sql.SQL("e.workflow_type"), _TEXT, _text, "development"),
    "workflow": _Field(sql.SQL("e.workflow_id::text"), ("=", "!="), _id, "6b696e74-7375-4769-8000-676f6c646a6f"),
    "step": _Field(sql.SQL("e.step_id"), _TEXT, _text, "deploy"),
    "severity": _Field(sql.SQL("e.error_severity"), _TEXT, _text, "high"),
    "status": _Field(sql.SQL("e.status"), ("=", "!="), _status, "open, recovering or waiting_for_human"),
    "fingerprint": _Field(sql.SQL("e.fingerprint"), _TEXT, _text, "9f86d081884c7d65"),
    "dependency": _Field(sql.SQL("e.dependency"), _TEXT, _text, "payments"),
    "attempts": _Field(sql.SQL("e.recovery_attempts"), _ORDER, _number, "3"),
    "age": _Field(sql.SQL("extract(epoch FROM now() - e.created_at)"), _ORDER, _seconds, "30s, 15m, 2h, 1d or 1w"),
    "waiting": _Field(sql.SQL("(e.status = 'waiting_for_human')"), ("=", "!="), _truth, "true or false"),
}
_OPERATORS = {name: sql.SQL(name) for name in ("=", "<", "<=", ">", ">=")} | {
    "!=": sql.SQL("IS DISTINCT FROM"),
    "~": sql.SQL("LIKE"),
}


def parse(text: str) -> Node:
    """The tree of a filter. FilterError says what is wrong, and where."""
    if len(text) > CHARS_MAX:
        raise FilterError("", 0, f"the filter has {len(text)} characters, {CHARS_MAX} allowed")
    return _Parser(text).whole()


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            what = "a quoted value has no end" if text[at] in "\"'" else f"{text[at]!r} has no meaning here"
            raise FilterError(text, at, what)
        if found.lastgroup != "space":
            yield _Token(str(found.lastgroup), found.group(), at)
        at = found.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent; one token is looked ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0
        self._depth = 0
        self._comparisons = 0

    def whole(self) -> Node:
        node = self._either()
        if self._next.kind != "end":
            raise self._error(f"'and', 'or' or the end is expected, not {self._next.text!r}")
        return node

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _word(self, word: str) -> bool:
        if self._next.kind == "word" and self._next.text.lower() == word:
            self._at += 1
            return True
        return False

    def _error(self, why: str, token: _Token | None = None) -> FilterError:
        return FilterError(self._text, (token or self._next).column, why)

    def _either(self) -> Node:
        node = self._both()
        while self._word("or"):
            node = Either(node, self._both())
        return node

    def _both(self) -> Node:
        node = self._not()
        while self._word("and"):
            node = Both(node, self._not())
        return node

    def _not(self) -> Node:
        self._depth += 1
        if self._depth > NESTED_MAX:
            raise self._error(f"nested deeper than {NESTED_MAX}")
        try:
            if self._word("not"):
                return Not(self._not())
            if self._next.kind == "open":
                self._take()
                node = self._either()
                if self._next.kind != "close":
                    raise self._error("')' is expected")
                self._take()
                return node
            return self._compare()
        finally:
            self._depth -= 1

    def _compare(self) -> Compare:
        self._comparisons += 1
        if self._comparisons > COMPARISONS_MAX:
            raise self._error(f"more than {COMPARISONS_MAX} comparisons")
        name = self._take()
        field = FIELDS.get(name.text.lower()) if name.kind == "word" else None
        if field is None:
            what = repr(name.text) if name.text else "the end"
            raise self._error(f"a field is expected, not {what}; one of {', '.join(FIELDS)}", name)
        operator = self._take()
        if operator.kind != "operator" or operator.text not in field.operators:
            raise self._error(f"{name.text} takes one of {' '.join(field.operators)}", operator)
        value = self._take()
        if value.kind not in ("word", "quoted"):
            raise self._error(f"a value is expected, such as {field.example}", value)
        text = value.text[1:-1] if value.kind == "quoted" else value.text
        if field.parse(text) is None:
            raise self._error(f"{text!r} is no value of {name.text}; one looks like {field.example}", value)
        return Compare(name.text.lower(), operator.text, text)


def render(node: Node) -> str:
    """A filter that means this tree."""
    if isinstance(node, Compare):
        quote = "'" if '"' in node.value else '"'
        return f"{node.field}{node.operator}{quote}{node.value}{quote}"
    if isinstance(node, Not):
        return f"not ({render(node.part)})"
    word = "and" if isinstance(node, Both) else "or"
    return f"({render(node.left)}) {word} ({render(node.right)})"


def compiled(node: Node) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition, and the values of its parameters."""
    values: dict[str, Any] = {}
    return _condition(node, values), values


def _condition(node: Node, values: dict[str, Any]) -> sql.Composable:
    if isinstance(node, Not):
        return sql.SQL("(NOT {})").format(_condition(node.part, values))
    if isinstance(node, Both | Either):
        word = sql.SQL(" AND ") if isinstance(node, Both) else sql.SQL(" OR ")
        return sql.SQL("({})").format(word.join([_condition(node.left, values), _condition(node.right, values)]))
    field = FIELDS[node.field]
    name = f"f{len(values)}"
    value = field.parse(node.value)
    values[name] = _like(value) if node.operator == "~" else value
    return sql.SQL("coalesce({} {} {}, false)").format(
        field.expression, _OPERATORS[node.operator], sql.Placeholder(name)
    )


def _like(glob: str) -> str:
    """A glob as a pattern of LIKE: `*` is any text, `?` one character, all else itself."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
