"""The code on docs/client.md, run as one session against real Kafka with the real recovery role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kintsugi_client import Client

from ops.stack import Addresses
from schemas.records.commands import ScaleResources
from schemas.records.events import WorkflowCompleted, WorkflowErrorOccurred
from tests.unit.docs.pages import ROOT, blocks, text_of

from .client_kit import Desk
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


def test_the_page_is_right(
    topics: Topics, desk: Desk, session: dict[str, Any], start: Callable[..., Role], capsys: pytest.CaptureFixture[str]
) -> None:
    start().wait_log("partitions assigned")
    # The blocks that declare types come before `listen`, as the page says.
    run(session, QUICKSTART, {"client.listen()": "", "workflow = monthly": "begin = lambda: monthly"})
    run(session, '@monthly.on("ScaleResources")')
    run(session, '@imports.on("RetryStep")', {"run(imports.begin": "begin_import = lambda: run(imports.begin"})
    client: Client = session["client"]
    assert client.listen()

    workflow = session["begin"]()
    of = {workflow.workflow_id}
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, of))
    assert workflow.data == {"days": 30, "rows": [n * n for n in range(30)], "total": sum(n * n for n in range(30))}

    session["begin_import"]()
    run(session, "import asyncio")
    for resource, ends in (("memory", "succeeded"), ("disk", "failed")):
        command = desk.build(ScaleResources, workflow.workflow_id, "monthly-report", resource=resource, factor=2.0)
        desk.send(command)
        desk.wait_answers(command, ("accepted", False), (ends, False))
    run(session, "small = Client.connect(")
    run(session, "undelivered = client.close()")
    assert capsys.readouterr().out == ""


def test_the_quickstart_repairs_itself(topics: Topics, session: dict[str, Any], start: Callable[..., Role]) -> None:
    """The quickstart as it stands, but for a step that is late the first time."""
    start().wait_log("partitions assigned")
    late = iter([True])
    session["late"] = lambda: next(late, False)
    failing = 'if late(): raise TimeoutError("late")\n    ctx.state["total"]'
    run(session, QUICKSTART, {'ctx.state["total"]': failing})
    workflow = session["workflow"]
    of = {workflow.workflow_id}
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, of))
    assert [e.error_code for e in topics.events(WorkflowErrorOccurred, of)] == ["TimeoutError"]
    assert workflow.status == "completed" and workflow.data["total"] == sum(n * n for n in range(30))
    assert not session["client"].close()
