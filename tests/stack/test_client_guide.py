"""The code on docs/client.md, run as one session against real Kafka with the real recovery role."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import Client

from ops.stack import Addresses
from schemas.keys import KeyRing
from schemas.records.commands import RetryStep, ScaleResources
from schemas.records.events import (
    CheckpointCreated,
    InterventionPointReached,
    WorkflowCompleted,
    WorkflowErrorOccurred,
)
from tests.unit.docs.pages import ROOT, blocks, text_of

from .client_kit import Desk, state_of
from .kit import Role, Topics, wait_for


@pytest.fixture
def session(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names that the code on the page has defined so far."""
    for name, value in addresses.environment().items():
        monkeypatch.setenv(name, value)
    return {}


PAGE = text_of(ROOT / "docs" / "client.md")
CODE = [block.body for block in blocks(PAGE) if block.language == "python"]
QUICKSTART = CODE[0]


def run(session: dict[str, Any], part: str, replaced: dict[str, str] | None = None) -> None:
    """Run the block that contains this text, with some texts replaced."""
    (body,) = (code for code in CODE if part in code)
    for old, new in (replaced or {}).items():
        assert old in body
        body = body.replace(old, new)
    exec(compile(body, "docs/client.md", "exec"), session)


def places(folder: Path) -> dict[str, str]:
    """Where the page keeps keys and objects, and where this test does."""
    keys = folder / "keys.json"
    keys.touch(mode=0o600)
    keys.write_bytes(KeyRing("first", {"first": bytes(range(32))}).dump())
    return {
        "file:///var/lib/orders/objects": (folder / "orders").as_uri(),
        "file:///etc/orders/keys.json": keys.as_uri(),
    }


def test_the_page_is_right(
    topics: Topics,
    desk: Desk,
    session: dict[str, Any],
    start: Callable[..., Role],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    start().wait_log("partitions assigned")
    # The blocks that declare types come before `listen`, as the page says.
    run(session, QUICKSTART, {"client.serve()": "", "monthly.start": "begin = lambda: monthly.start"})
    run(session, '@monthly.on("ScaleResources")')
    run(session, '@imports.on("RetryStep")', {"run(imports.begin": "begin_import = lambda: run(imports.begin"})
    run(session, "orders = client.workflow_type(")
    run(session, '@shipping.migration("1", "2")')
    run(session, "shop = client.workflow_type(")
    client: Client = session["client"]
    assert client.listen()

    workflow = session["begin"]()
    of = {workflow.workflow_id}
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, of))
    assert workflow.data == {"days": 30, "rows": [n * n for n in range(30)], "total": sum(n * n for n in range(30))}

    first_state = session["first_state"]
    assert first_state({"items": [{"price": 5}, {"price": -1}]}) == "$.data.items[1].price"
    checkpoint_id = first_state({"items": [{"price": 5}]})
    of = {w.workflow_id for w in client.workflows() if w.kind.name == "order"}
    assert [c.checkpoint_id for c in topics.events(CheckpointCreated, of)] == [checkpoint_id]

    migrated = session["shipping"].migrations.run({"name": "Ada Lovelace", "weight": 5}, "1", "3")
    assert migrated.data == {"first": "Ada", "last": "Lovelace", "weight": {"value": 5, "unit": "kg"}}

    shop = session["shop"].start({"price": 5})
    of = {shop.workflow_id}
    (reached,) = wait_for("its intervention point", lambda: topics.events(InterventionPointReached, of))
    assert reached.reason == "May it be charged?"
    wait_for("its checkpoint", lambda: topics.events(CheckpointCreated, of))
    passed = desk.build(
        RetryStep, shop.workflow_id, "shop", step_id="charge", approved=True, **desk.where(shop.workflow_id)
    )
    desk.send(passed)
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, of))
    assert sorted(shop.data) == ["price", "receipt", "reserved"]

    session["begin_import"]()
    run(session, "import asyncio")
    for resource, ends in (("memory", "succeeded"), ("disk", "failed")):
        command = desk.build(ScaleResources, workflow.workflow_id, "monthly-report", resource=resource, factor=2.0)
        desk.send(command)
        desk.wait_answers(command, ("accepted", False), (ends, False))
    run(session, "sealed = Client.connect(", places(tmp_path))
    with session["sealed"] as sealed:
        assert sealed.workflow_type("sealed").begin().checkpoint()
    run(session, "renderer = Client.connect(")
    session["renderer"].close()
    run(session, "small = Client.connect(")
    run(session, "undelivered = client.close()")
    assert capsys.readouterr().out == ""


def test_the_quickstart_is_a_service(
    topics: Topics, environment: dict[str, str], start: Callable[..., Role], tmp_path: Path
) -> None:
    """As it stands, but for a step that is late the first time."""
    start().wait_log("partitions assigned")
    late = """if not ctx.state.get("late") and not LATE.exists():
        LATE.touch()
        raise TimeoutError("late")
    ctx.state["total"]"""
    program = QUICKSTART.replace('ctx.state["total"]', late).replace("monthly.start", "print(monthly.start")
    program = program.replace("30})", "30}).workflow_id, flush=True)")
    script = tmp_path / "service.py"
    script.write_text(f"from pathlib import Path\nLATE = Path({str(tmp_path / 'late')!r})\n{program}", encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    of = {process.stdout.readline().strip()}
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, of))
    assert [e.error_code for e in topics.events(WorkflowErrorOccurred, of)] == ["TimeoutError"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    last = topics.events(CheckpointCreated, of)[-1]
    assert state_of(last)["data"]["total"] == sum(n * n for n in range(30))
