"""The chain of migrations that a state goes through: which one is found, and what is refused."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.canonical import canonical_bytes, digest_of
from schemas.errors import ConfigError, StateError
from schemas.migrations import MIGRATIONS_MAX, Migration, MigrationError, Migrations

VERSIONS = [str(n) for n in range(1, 9)]
PAIRS = st.lists(st.tuples(st.sampled_from(VERSIONS), st.sampled_from(VERSIONS)), max_size=30)
JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)
DATA = st.dictionaries(st.text("abc", max_size=3), JSON_DATA, max_size=4)


def noting(version: str) -> Migration:
    """A migration that leaves a note of the version it made."""

    def migrate(data: dict[str, Any]) -> dict[str, Any]:
        data.setdefault("$seen", []).append(version)
        return data

    return migrate


def of(*pairs: tuple[str, str]) -> Migrations:
    migrations = Migrations()
    for older, newer in pairs:
        migrations.add(older, newer)(noting(newer))
    return migrations


def ways(edges: list[tuple[str, str]], start: str, end: str) -> list[tuple[str, ...]]:
    """Every way through the graph that meets no version twice, by trying all."""
    if start == end:
        return [(start,)]
    left = [e for e in edges if e[1] != start]
    return [(start, *rest) for a, b in edges if a == start for rest in ways(left, b, end)]


@given(PAIRS)
def test_between_two_versions_there_is_never_more_than_one_way(pairs: list[tuple[str, str]]) -> None:
    migrations = Migrations()
    kept: list[tuple[str, str]] = []
    for older, newer in pairs:
        would_be = [*kept, (older, newer)]
        unique = all(len(ways(would_be, a, b)) <= 1 for a, b in itertools.product(VERSIONS, VERSIONS))
        loops = older == newer or bool(ways(kept, newer, older)) or (older, newer) in kept
        try:
            migrations.add(older, newer)(noting(newer))
        except ConfigError:
            assert loops or not unique
        else:
            assert unique and not loops
            kept.append((older, newer))
    for start, end in itertools.product(VERSIONS, VERSIONS):
        expected = ways(kept, start, end)
        if expected:
            assert migrations.chain(start, end) == expected[0]
        else:
            with pytest.raises(MigrationError):
                migrations.chain(start, end)


@given(DATA, st.integers(1, 8), st.integers(1, 8))
def test_every_link_is_carried_out_once_in_order_and_its_digests_join(data: dict[str, Any], a: int, b: int) -> None:
    migrations = of(*itertools.pairwise(VERSIONS))
    before = copy.deepcopy(data)
    if a > b:
        with pytest.raises(MigrationError) as caught:
            migrations.run(data, str(a), str(b))
        assert caught.value.reason == "downgrade"
    else:
        found = migrations.run(data, str(a), str(b))
        seen = [str(n) for n in range(a + 1, b + 1)]
        assert [(x.from_version, x.to_version) for x in found.links] == list(itertools.pairwise([str(a), *seen]))
        assert found.data == ({**before, "$seen": seen} if seen else before)
        digests = [digest_of(canonical_bytes(before))] + [x.digest_after for x in found.links]
        assert [x.digest_before for x in found.links] == digests[:-1]
        assert digests[-1] == digest_of(canonical_bytes(found.data))
    assert data == before


@pytest.mark.parametrize(
    ("pairs", "start", "end", "reason", "said"),
    [
        ([], "1", "2", "migration_missing", "no migration '1' -> '2'"),
        ([("1", "2"), ("3", "4")], "1", "4", "migration_missing", "no migration '2' -> '3'"),
        ([("1", "2"), ("1", "3"), ("4", "5")], "1", "5", "migration_missing", "no migration '2' -> '4', or '3' -> '4'"),
        ([("1", "2")], "1", "3", "migration_missing", "no migration '2' -> '3'"),
        ([("2", "3")], "1", "3", "migration_missing", "no migration '1' -> '2'"),
        ([("1", "2")], "blue", "2", "migration_missing", "no migration 'blue' -> '1'"),
        ([("1", "2"), ("2", "3")], "3", "1", "downgrade", "newer than the service"),
        ([("blue", "red")], "red", "blue", "downgrade", "newer than the service"),
        ([], "2", "1", "downgrade", "newer than the service"),
        ([("1", "2")], "10", "9", "downgrade", "newer than the service"),
        ([], "1.10", "1.9", "downgrade", "newer than the service"),
        ([("1", "2"), ("3", "2")], "3", "1", "migration_missing", "no migration '2' -> '1'"),
    ],
)
def test_what_cannot_be_reached_says_why(
    pairs: list[tuple[str, str]], start: str, end: str, reason: str, said: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        of(*pairs).run({}, start, end)
    assert caught.value.reason == reason
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("1", "1")], "leads back"),
        ([("1", "2"), ("2", "1")], "leads back"),
        ([("1", "2"), ("2", "3"), ("3", "1")], "leads back"),
        ([("1", "2"), ("1", "2")], "twice"),
        ([("1", "2"), ("2", "3"), ("1", "3")], "second way from '1' to '3'"),
        ([("1", "3"), ("2", "4"), ("3", "4"), ("1", "2")], "second way from '1' to '4'"),
        ([("", "1")], "1 to 50 characters"),
        ([("1", "x" * 51)], "1 to 50 characters"),
    ],
)
def test_a_registration_that_would_leave_a_choice_is_refused(pairs: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(*pairs)


def test_only_plain_functions_are_migrations() -> None:
    async def later(data: dict[str, Any]) -> dict[str, Any]:
        return data

    for wrong in (later, "no function"):
        with pytest.raises(ConfigError, match="plain function"):
            Migrations().add("1", "2")(wrong)  # type: ignore[arg-type]


def test_the_number_of_migrations_is_bounded() -> None:
    migrations = of(*((f"a{n}", f"b{n}") for n in range(MIGRATIONS_MAX)))
    with pytest.raises(ConfigError, match="more than"):
        migrations.add("1", "2")(noting("2"))


def test_a_migration_that_raises_leaves_the_data_as_it_was() -> None:
    migrations = of(("1", "2"))

    @migrations.add("2", "3")
    def broken(data: dict[str, Any]) -> dict[str, Any]:
        data["rows"].clear()
        raise KeyError("title")

    data = {"rows": [1, 2]}
    with pytest.raises(MigrationError) as caught:
        migrations.run(data, "1", "3")
    assert caught.value.reason == "migration_failed"
    assert "migration '2' -> '3': KeyError: 'title'" in str(caught.value)
    assert data == {"rows": [1, 2]}


class UntoldError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_that_cannot_be_told_is_a_failure_all_the_same() -> None:
    migrations = Migrations()

    @migrations.add("1", "2")
    def broken(data: dict[str, Any]) -> dict[str, Any]:
        raise UntoldError

    with pytest.raises(MigrationError, match="UntoldError: <no text: RuntimeError>"):
        migrations.run({}, "1", "2")


LOOP: dict[str, Any] = {}
LOOP["again"] = LOOP


@pytest.mark.parametrize(
    ("made", "path", "said"),
    [
        (None, "$", "it returned NoneType"),
        ([1], "$", "it returned list"),
        ({"a": {"b": float("nan")}}, "$.a.b", "not a JSON number"),
        ({"a": [1, {2, 3}]}, "$.a[1]", "set is not JSON data"),
        ({"a": 2**60}, "$.a", r"integer beyond 2\^53"),
        (LOOP, "$" + ".again" * 64, "nested deeper"),
        ({"a": "x" * 11_000_000}, "$", "bytes"),
    ],
)
def test_a_result_that_is_no_state_is_a_failure_with_its_path(made: Any, path: str, said: str) -> None:
    migrations = Migrations()
    migrations.add("1", "2")(lambda data: made)
    with pytest.raises(MigrationError, match=said) as caught:
        migrations.run({}, "1", "2")
    assert caught.value.reason == "migration_failed"
    assert caught.value.path == path


def test_the_result_must_pass_the_check_of_the_newest_version() -> None:
    checked: list[dict[str, Any]] = []

    def refuse(data: dict[str, Any]) -> None:
        checked.append(data)
        raise StateError("schema", "$.name: is required", path="$.name")

    migrations = of(("1", "2"), ("2", "3"))
    with pytest.raises(MigrationError, match=r"'2' -> '3': its result is refused: \$\.name") as caught:
        migrations.run({}, "1", "3", check=refuse)
    assert caught.value.reason == "migration_failed"
    assert checked == [{"$seen": ["2", "3"]}]
    migrations.run({}, "3", "3", check=refuse)
    assert len(checked) == 1


def test_what_a_migration_keeps_is_no_part_of_the_state() -> None:
    shared: dict[str, Any] = {"limits": [1, 2], "pair": (1, 2)}
    migrations = Migrations()
    migrations.add("1", "2")(lambda data: {**data, "settings": shared})
    found = migrations.run({}, "1", "2")
    shared["limits"].append(3)
    assert found.data == {"settings": {"limits": [1, 2], "pair": [1, 2]}}


def test_a_registry_is_true_once_it_holds_something() -> None:
    assert not Migrations()
    assert of(("1", "2"))


def test_what_was_registered_can_be_listed() -> None:
    migrations = of(("1", "2"), ("2", "3"), ("1", "blue"))
    assert [(older, newer) for older, newer, _ in migrations.items()] == [("1", "2"), ("1", "blue"), ("2", "3")]
    assert migrations.newest() == ("3", "blue")
    assert Migrations().newest() == ()
