"""Everything Kintsugi needs, checked one by one; each finding carries its fix."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from schemas.errors import KintsugiError
from schemas.sealing import SECRET_BYTES

if TYPE_CHECKING:
    from ops.stack import Addresses

OK, WARN, FAIL = "ok", "warn", "fail"
_DISK_FREE_BYTES_MIN = 1024**3
_CLOCK_SKEW_S_MAX = 1.0
_POSTGRES_VERSION_MIN = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was checked, ok | warn | fail, what was found, and the fix."""

    check: str
    state: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Run every check; one that breaks is a finding, never an exception."""
    from ops.stack import addresses

    try:
        at = addresses()
    except KintsugiError as error:
        return [Finding(check="addresses", state=FAIL, found=str(error), fix=error.hint or "kintsugi up")]
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("kafka", lambda: _kafka(at.kafka)),
        ("registry", lambda: _registry(at.registry)),
        ("postgres", lambda: _postgres(at.postgres)),
        ("objects", lambda: _objects(at.objects)),
        ("keys", lambda: _keys(at.objects)),
        ("policy", lambda: _policy(at)),
        ("decoder", _decoder),
    ]
    findings = []
    for name, check in checks:
        try:
            findings += list(check())
        except KintsugiError as error:
            findings.append(Finding(check=name, state=FAIL, found=str(error), fix=error.hint or "kintsugi status"))
        except Exception as error:
            findings.append(
                Finding(check=name, state=FAIL, found=f"{type(error).__name__}: {error}"[:300], fix="kintsugi status")
            )
    return findings


def _kafka(kafka: str) -> Iterator[Finding]:
    from ops.kafka_topics import describe

    states = describe(kafka)
    yield Finding(check="kafka", state=OK, found=f"{kafka} answers")
    for state in states:
        name = f"topic {state.name}"
        if not state.exists:
            yield Finding(check=name, state=FAIL, found="missing", fix="kintsugi topics create")
        elif any("timestamp" in d for d in state.differences):
            yield Finding(
                check=name,
                state=FAIL,
                found="; ".join(state.differences),
                fix=f"kafka-configs.sh --alter --topic {state.name} --add-config message.timestamp.type=LogAppendTime",
            )
        elif state.differences:
            yield Finding(
                check=name, state=WARN, found="; ".join(state.differences), fix="compare with kintsugi topics describe"
            )
        else:
            yield Finding(check=name, state=OK, found=f"{state.partitions} partitions")


def _registry(url: str) -> Iterator[Finding]:
    from schemas.registry import Registry

    with Registry(url) as registry:
        found = registry.compare()
    missing = [f.subject for f in found if f.state == "missing"]
    newer = [f.subject for f in found if f.state == "newer"]
    if missing:
        yield Finding(
            check="schemas",
            state=FAIL,
            found=f"{len(missing)} of {len(found)} not registered, first {missing[0]}",
            fix="kintsugi schemas register",
        )
    elif newer:
        yield Finding(
            check="schemas",
            state=WARN,
            found=f"{len(newer)} have a newer version than ours, first {newer[0]}",
            fix="upgrade this installation",
        )
    else:
        yield Finding(check="schemas", state=OK, found=f"{len(found)} registered at {url}")


def _postgres(url: str) -> Iterator[Finding]:
    import psycopg

    with psycopg.connect(url, connect_timeout=5) as connection:
        before = time.time()
        row = connection.execute(
            "SELECT current_setting('server_version_num')::int, extract(epoch FROM clock_timestamp())::float8,"
            " current_setting('synchronous_commit'), to_regclass('kintsugi.positions') IS NOT NULL"
        ).fetchone()
        after = time.time()
    assert row is not None
    number, now_s, synchronous, migrated = row
    fine = number >= _POSTGRES_VERSION_MIN
    yield Finding(
        check="postgres",
        state=OK if fine else FAIL,
        found=f"version {number // 10000}",
        fix="" if fine else "PostgreSQL 15 or newer",
    )
    if synchronous == "off":
        yield Finding(
            check="postgres durability",
            state=WARN,
            found="synchronous_commit is off",
            fix="ALTER SYSTEM SET synchronous_commit = on",
        )
    skew_s = 0.0 if before <= now_s <= after else min(abs(now_s - before), abs(now_s - after))
    good = skew_s <= _CLOCK_SKEW_S_MAX
    yield Finding(
        check="clock",
        state=OK if good else WARN,
        found=f"{skew_s:.3f} s from Postgres' clock",
        fix="" if good else "run NTP on both",
    )
    yield Finding(
        check="tables",
        state=OK if migrated else FAIL,
        found="present" if migrated else "missing",
        fix="" if migrated else "kintsugi db migrate",
    )
    if migrated:
        yield from rights(url)


def rights(url: str) -> Iterator[Finding]:
    """What `kintsugi projections` needs; the roles themselves do without."""
    from projections.generations import connected, missing_grants

    with connected(url) as connection:
        missing = missing_grants(connection)
    yield Finding(
        check="rights to rebuild",
        state=WARN if missing else OK,
        found=f"{len(missing)} grants are missing" if missing else "granted",
        fix="; ".join(missing),
    )


def _objects(url: str) -> Iterator[Finding]:
    from schemas.objects import Objects

    store = Objects(url)
    path, data = f"doctor/{uuid.uuid4()}", b"kintsugi doctor"
    made = store.put_new(path, data)
    try:
        # Keys and claims rest on it: of two that write one object, the second must not win.
        again = store.put_new(path, b"again")
        whole = store.get(path) == data and store.info(path) is not None
    finally:
        store.delete(path)
    if not (made and whole) or again or store.get(path) is not None:
        yield Finding(
            check="objects",
            state=FAIL,
            found=f"{urlparse(url).scheme} store does not keep what is written, or not only once",
            fix="use a store with conditional writes: a local folder, S3, GCS, Azure",
        )
        return
    parsed = urlparse(url)
    if parsed.scheme != "file":
        yield Finding(check="objects", state=OK, found=f"{parsed.scheme} store answers")
        return
    folder = Path(unquote(parsed.path))
    free = shutil.disk_usage(folder).free
    fine = free >= _DISK_FREE_BYTES_MIN
    yield Finding(
        check="objects",
        state=OK if fine else WARN,
        found=f"{folder}: {free / 1024**3:.1f} GiB free",
        fix="" if fine else "make room",
    )


def _keys(objects: str) -> Iterator[Finding]:
    from schemas.keystore import open_keystore

    keystore = open_keystore(None, objects)
    if keystore is None:
        yield Finding(check="keys", state=OK, found="not configured: states are stored in clear")
        return
    provider = keystore.provider
    secret, context = os.urandom(SECRET_BYTES), {"workflow_id": "doctor", "number": "0"}
    kek_id, wrapped = provider.wrap(secret, context)
    if provider.unwrap(kek_id, wrapped, context) != secret:
        found, fix = f"{kek_id} does not unwrap what it wrapped", "kintsugi keys status"
        yield Finding(check="keys", state=FAIL, found=found, fix=fix)
        return
    yield Finding(check="keys", state=OK, found=f"{len(provider.names())} keys, current {kek_id}")


def _policy(at: Addresses) -> Iterator[Finding]:
    """The policy that was applied last: whether it loads here, and is in force everywhere."""
    from engine.policy import load_policy
    from ops.policies import applied, partitions_of, reach_of
    from schemas.errors import ConfigError

    newest = applied(at).newest
    if newest is None:
        yield Finding(check="policy", state=OK, found="none was applied: each process has the one it was started with")
        return
    try:
        policy = load_policy(newest.text, f"version {newest.version}")
    except ConfigError as error:
        fix = "upgrade this installation, or apply one that it can read"
        yield Finding(check="policy", state=FAIL, found=str(error)[:300], fix=fix)
        return
    reach = reach_of(newest, partitions_of(at))
    found = f"version {newest.version} is in force in {len(reach.partitions)} of {reach.all} partitions"
    state, fix = (OK, "") if reach.whole else (FAIL, "kintsugi policy apply --resume")
    yield Finding(check="policy", state=state, found=found, fix=fix)
    for warning in policy.warnings:
        yield Finding(check="policy", state=WARN, found=warning, fix="kintsugi policy validate FILE")


def _decoder() -> Iterator[Finding]:
    import fastavro

    fast = fastavro.schemaless_reader.__module__.endswith("_read") or hasattr(fastavro._read, "__file__")
    compiled = fast and str(getattr(fastavro._read, "__file__", "")).endswith((".so", ".pyd"))
    yield Finding(
        check="avro decoder",
        state=OK if compiled else WARN,
        found="compiled" if compiled else "pure Python, far slower",
        fix="" if compiled else "install a fastavro wheel for this platform",
    )
