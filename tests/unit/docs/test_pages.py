"""Every command, link and path on the pages exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from ops.cli import cli

from .pages import PAGES, ROOT, anchors, blocks, code_spans, links, name_of, prose, text_of

#: What stands for an id on a page.
PLACEHOLDERS = {"ID", "WORKFLOW_ID", "ERROR_ID", "CHECKPOINT_ID", "INCIDENT_ID"}
AN_ID = "6b696e74-7375-4769-8000-676f6c646a6f"
FOLDERS = ("schemas", "engine", "consumers", "projections", "client", "ops", "tests", "bench", "examples", "docs")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
#: A part of a path that stands for many, as in `docs/adr/NNNN-*.md`, or for a version to come.
_PLACEHOLDER = re.compile(r"(?<=/)(?:[A-Z]+(?=[/-])|\d+\.\d+\.\d+)")


def command_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, a prompt and continuations removed."""
    indented = re.findall(r"^ {4,}(.+)$", prose(text), re.MULTILINE)
    for body in (*(block.body for block in blocks(text)), *indented):
        for line in body.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def calls(lines: Iterable[str], program: str) -> Iterator[list[str]]:
    """Arguments of every call of a program, also behind a pipe, an assignment or a path."""
    for line in lines:
        if program not in line:
            continue
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.wordchars += ":"  # module:object, file:///...
        call: list[str] = []
        try:
            for word in [*words, ";"]:
                if set(word) <= set("();<>|&"):
                    if call and Path(call[0]).name == program:
                        yield call[1:]
                    call = []
                elif call or not _ASSIGNMENT.match(word):
                    call.append(word)
        except ValueError:
            continue  # a sentence with an apostrophe, not a command


def parse(arguments: list[str]) -> None:
    """Resolve a command of ours and its options, without running it. Raises click's errors."""
    at: click.Command = cli
    context = click.Context(cli, info_name="kintsugi")
    left = [AN_ID if word in PLACEHOLDERS else word for word in arguments]
    while isinstance(at, click.Group) and left and not left[0].startswith("-"):
        found = at.get_command(context, left[0])
        if found is None:
            raise click.UsageError(f"no command {left[0]!r}")
        at = found
        context = click.Context(at, info_name=left.pop(0), parent=context)
    if left or not isinstance(at, click.Group):
        at.make_context(context.info_name, left, parent=context.parent)


def shown() -> list[tuple[str, str]]:
    """(page, arguments) of every `kintsugi ...` in fenced blocks, and in the help's own examples."""
    found = [(name_of(page), call) for page in PAGES for call in calls(command_lines(text_of(page)), "kintsugi")]
    examples = (line.split("  ")[0] for line in map(str.strip, (cli.epilog or "").splitlines()))
    found += [("--help", call) for call in calls(examples, "kintsugi")]
    return sorted({(page, shlex.join(call)) for page, call in found})


def mentioned() -> list[tuple[str, str]]:
    """(page, arguments) of every `kintsugi ...` in running text, where arguments may be left out."""
    found = ((name_of(page), call) for page in PAGES for call in calls(code_spans(text_of(page)), "kintsugi"))
    return sorted({(page, shlex.join(call)) for page, call in found})


@pytest.fixture
def files_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that pages call `my-policy.yaml`."""
    (tmp_path / "my-policy.yaml").touch()
    monkeypatch.chdir(tmp_path)


def test_commands_are_found_on_the_pages() -> None:
    assert len({arguments for _, arguments in shown()}) >= 10
    assert ("--help", "up") in shown()
    assert mentioned()


@pytest.mark.parametrize(("page", "line"), shown())
def test_a_shown_command_parses(page: str, line: str, files_exist: None) -> None:
    try:
        parse(shlex.split(line))
    except click.exceptions.Exit:  # --help
        pass
    except click.ClickException as error:
        pytest.fail(f"{page}: kintsugi {line}: {error.format_message()}")


@pytest.mark.parametrize(("page", "line"), mentioned())
def test_a_mentioned_command_exists(page: str, line: str, files_exist: None) -> None:
    try:
        parse(shlex.split(line))
    except (click.exceptions.Exit, click.MissingParameter):
        pass
    except click.ClickException as error:
        pytest.fail(f"{page}: kintsugi {line}: {error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "kintsugi frobnicate",
        "kintsugi errors list --colour red",
        "FOO=1 .venv/bin/kintsugi errors list --status broken | less",
        "kintsugi workflows show not-an-id",
        "cat x.yaml | kintsugi run",
    ],
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    (arguments,) = calls(command_lines(f"```console\n$ {line}  # why\n```\n"), "kintsugi")
    with pytest.raises(click.ClickException):
        parse(arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = text_of(page)
    asked = {call[0] for call in calls([*command_lines(text), *code_spans(text)], "make") if call}
    assert asked <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: no such file"
        assert not fragment or fragment in anchors(text_of(target)), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    for span in code_spans(text_of(page)):
        if _PATH.fullmatch(span):
            pattern = _PLACEHOLDER.sub("*", span.rstrip("/"))
            assert next(ROOT.glob(pattern), None) is not None, f"{span} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_beside_a_path_are_in_that_file(page: Path) -> None:
    """As in `engine/decide.py` (`_next` appends): whoever renames a function finds the page that names it."""
    for path, remark in re.findall(r"`([\w./]+\.(?:py|sql))`\s\(([^)]*)\)", prose(text_of(page))):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`([A-Za-z_]\w*)`", remark):
            assert re.search(rf"\b{name}\b", source), f"{path} has no {name}"


def test_functions_in_the_life_of_an_error_exist() -> None:
    page = text_of(ROOT / "docs" / "architecture.md")
    (life,) = (block.body for block in blocks(page) if block.body.startswith("after ms"))
    places = re.findall(r" (client )?(\w+\.py)(?: (\w+))?$", life, re.MULTILINE)
    assert len(places) >= 10
    for client, file, name in places:
        source = (ROOT / ("client/kintsugi_client" if client else "engine") / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {name}\b", source, re.MULTILINE), f"{file} has no function {name}"


def test_paths_in_messages_exist() -> None:
    """What the program tells people to read."""
    named = {
        match
        for folder in ("schemas", "engine", "consumers", "projections", "ops")
        for source in (ROOT / folder).rglob("*.py")
        for match in re.findall(r"docs/[\w/-]+\.md", source.read_text(encoding="utf-8"))
    }
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_the_service_on_the_front_page_is_the_one_of_the_guide() -> None:
    """The guide's is run on the real stack."""
    front, guide = (blocks(text_of(ROOT / page)) for page in ("README.md", "docs/client.md"))
    (shown,) = [block.body for block in front if block.language == "python"]
    assert shown == guide[0].body
