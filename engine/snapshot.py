"""States to bytes and back. A snapshot is a cache: one that cannot be read is ignored, and nothing is lost."""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from dataclasses import fields
from sys import intern
from typing import Any

import orjson
import zstandard

from schemas.codec import Codec
from schemas.errors import KintsugiError
from schemas.records.events import RecoveryDecided, StepSpec
from schemas.state_schema import StateSchema, compiled

from .graph import Graph, graph_of
from .state import Attempt, Case, StepRun, WorkflowState
from .usage import Usage

#: Raised by one whenever the state or its fold changes in a way that older snapshots do not fit.
VERSION = 6
#: Largest snapshot that is read, uncompressed: about 500,000 open workflows of one partition.
SIZE_BYTES_MAX = 2 * 1024**3

_PLAIN = (str, int, float, bool, type(None))


class SnapshotError(KintsugiError):
    """The bytes are no snapshot, are damaged, or were written by another version."""


class Dump:
    """States on their way into one snapshot. Each is taken as it is when it is added; later changes do not show."""

    def __init__(self) -> None:
        self._codec = Codec()
        #: By id, which is a graph's own only while it lives: so it is kept here.
        self._graphs: dict[int, tuple[int, Graph]] = {}
        self._specs: list[Any] = []
        #: Texts of the states' JSON Schemas, which workflows of a type share.
        self._schemas: dict[str, int] = {}
        self._rows: list[list[Any]] = []

    def add(self, state: WorkflowState) -> None:
        """Take a state."""
        key = id(state.graph)
        if key not in self._graphs:
            self._graphs[key] = len(self._specs), state.graph
            self._specs.append([{f.name: getattr(s, f.name) for f in fields(StepSpec)} for s in state.graph.steps])
        schema = None if state.schema is None else self._schemas.setdefault(state.schema.text, len(self._schemas))
        self._rows.append([*_row(state, self._graphs[key][0], self._codec), schema])

    def data(self) -> bytes:
        """All of them, compressed, with a version and a checksum (zstd's)."""
        made = {"version": VERSION, "graphs": self._specs, "schemas": list(self._schemas), "states": self._rows}
        data = orjson.dumps(made)
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def dump(states: Iterable[WorkflowState]) -> bytes:
    """A snapshot of these states."""
    made = Dump()
    for state in states:
        made.add(state)
    return made.data()


def load(data: bytes) -> list[WorkflowState]:
    """Inverse of `dump`. SnapshotError for anything else."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= SIZE_BYTES_MAX:
            raise SnapshotError(f"declared size {size} is outside 0..{SIZE_BYTES_MAX}")
        value = orjson.loads(zstandard.ZstdDecompressor().decompress(data))
        if value["version"] != VERSION:
            raise SnapshotError(f"version {value['version']!r:.20}, this engine reads {VERSION}")
        graphs = [graph_of(tuple(_spec(s) for s in steps)) for steps in value["graphs"]]
        codec = Codec()
        schemas = [compiled(text) for text in value["schemas"]]
        return [_state(row, graphs, schemas, codec) for row in value["states"]]
    except SnapshotError:
        raise
    except Exception as error:  # whatever is wrong with it, it is only a cache
        raise SnapshotError(f"not a snapshot: {type(error).__name__}: {error}"[:300]) from error


def _spec(value: dict[str, Any]) -> StepSpec:
    return StepSpec(**{**value, "depends_on": tuple(value["depends_on"]), "resources": tuple(value["resources"])})


_SKIPPED = (
    "graph",
    "steps",
    "runs",
    "cases",
    "tip",
    "checkpoints",
    "known",
    "effects",
    "sizes",
    "recent",
    "usage",
    "leases",
    "transitions",
    "schema",
)
_NAMES = tuple(f.name for f in fields(WorkflowState) if f.name not in _SKIPPED)
_RUN = tuple(f.name for f in fields(StepRun))
_CASE = tuple(f.name for f in fields(Case) if f.name not in ("attempt", "progress", "loop"))


def _text(data: bytes | bytearray) -> str:
    # Not base 85, which Python encodes in Python: it took four fifths of the time that a snapshot holds up the loop.
    return b2a_base64(data, newline=False).decode()


def _row(state: WorkflowState, graph: int, codec: Codec) -> list[Any]:
    runs = [[n, *(getattr(run, f) for f in _RUN)] for n, run in (state.runs or {}).items()]
    cases = [_case_row(case, codec) for case in (state.cases or {}).values()]
    plain = [getattr(state, name) for name in _NAMES]
    tip = None if state.tip is None else _text(state.tip)
    packed = [_text(state.checkpoints), _text(state.known), _text(state.effects)]
    detection = [_text(state.recent), _usage_row(state.usage), state.leases]
    return [plain, graph, _text(state.steps), runs, cases, tip, *packed, state.sizes, detection]


def _usage_row(usage: Usage | None) -> list[Any] | None:
    if usage is None:
        return None
    return [[[*key, _text(samples)] for key, samples in usage.series.items()], _text(usage.calls), _text(usage.known)]


def _case_row(case: Case, codec: Codec) -> list[Any]:
    a = case.attempt
    attempt = (
        None
        if a is None
        else [
            _text(codec.encode(a.decision)),
            a.status,
            a.decided_at_us,
            a.execute_at_us,
            a.sent_at_us,
            a.accepted_at_us,
            a.epoch,
            a.held,
            a.held_at_us,
        ]
    )
    return [[getattr(case, f) for f in _CASE], attempt, case.progress, _text(case.loop)]


def _state(row: list[Any], graphs: list[Any], schemas: list[StateSchema], codec: Codec) -> WorkflowState:
    plain, graph, steps, runs, cases, tip, checkpoints, known, effects, sizes, detection, schema = row
    if not all(isinstance(v, _PLAIN) for v in plain):
        raise SnapshotError("a field has the wrong type")
    state = WorkflowState(**dict(zip(_NAMES, plain, strict=True)))
    state.workflow_type = intern(state.workflow_type)
    state.graph = graphs[graph]
    state.schema = None if schema is None else schemas[schema]
    state.steps = a2b_base64(steps)
    state.runs = {n: StepRun(**dict(zip(_RUN, values, strict=True))) for n, *values in runs} or None
    state.cases = {c.error_id: c for c in (_case(r, codec) for r in cases)} or None
    state.tip = None if tip is None else a2b_base64(tip)
    state.checkpoints = a2b_base64(checkpoints)
    state.known = a2b_base64(known)
    state.effects = a2b_base64(effects)
    state.sizes = None if sizes is None else {str(k): float(v) for k, v in sizes.items()}
    recent, usage, leases = detection
    state.recent = a2b_base64(recent)
    state.usage = _usage(usage)
    state.leases = leases
    return state


def _usage(row: list[Any] | None) -> Usage | None:
    if row is None:
        return None
    series, calls, known = row
    return Usage({(name, step): a2b_base64(data) for name, step, data in series}, a2b_base64(calls), a2b_base64(known))


def _case(row: list[Any], codec: Codec) -> Case:
    plain, attempt, progress, loop = row
    case = Case(**dict(zip(_CASE, plain, strict=True)))
    case.loop = a2b_base64(loop)
    case.progress = None if progress is None else {k: (v[0], v[1]) for k, v in progress.items()}
    if attempt is not None:
        decision = codec.decode(a2b_base64(attempt[0]))
        if not isinstance(decision, RecoveryDecided):
            raise SnapshotError("an attempt without its decision")
        case.attempt = Attempt(decision, *attempt[1:])
    return case
