"""State as data: one byte form for one value, digests that notice damage, limits that hold before memory is spent."""

from __future__ import annotations

import enum
import gzip
import hashlib
import json
import math
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import rfc8785
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.canonical import (
    CODECS,
    DEPTH_MAX,
    KEYS_MAX,
    STATE_SIZE_BYTES_MAX,
    canonical_bytes,
    chain_digest_of,
    compress,
    decompress,
    digest_of,
    parse_state,
    verify_stored,
)
from schemas.errors import StateError

MIB = 1024 * 1024


def refused(call: Any, *arguments: Any, **named: Any) -> StateError:
    with pytest.raises(StateError) as caught:
        call(*arguments, **named)
    return caught.value


def doubles() -> st.SearchStrategy[float]:
    """Any finite double; also those where the two ways of writing one differ."""
    of_bits = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
    edges = st.sampled_from([1e-4, 1e-5, 1e-6, 1e-7, 1e15, 1e16, 1e17, 1e20, 1e21, 2.0**53, 5e-324, -0.0, 0.5, 1e23])
    near = st.builds(lambda x, ulps: math.nextafter(x, math.inf if ulps else -math.inf), edges, st.booleans())
    return (of_bits | edges | near | st.floats(1e-5, 1e17) | st.floats()).filter(math.isfinite)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8) | st.sampled_from(
    ["\x7f", "\u2028\u2029", "\x01\x1f\b\f\n\r\t", '"\\/', "é", "\ufeff", "\uffff", "\ue000", "😀", "𝒳", "a" * 300]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | doubles() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)
STATES = st.dictionaries(TEXTS, VALUES, max_size=5)


# One byte form for one value.


@settings(max_examples=250, deadline=None)
@given(VALUES)
@example({"\uffff": 1, "😀": 2, "\ue000": 3})  # UTF-16 sorts the surrogate pair first, UTF-8 last
@example({"a": 1e-4, "b": math.nextafter(1e-4, 0), "c": -0.0, "d": 1e16, "e": 0.1})
def test_bytes_are_those_of_the_reference_implementation(value: Any) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)


@settings(max_examples=250, deadline=None)
@given(st.lists(doubles(), max_size=30))
def test_numbers_are_those_of_the_reference_implementation(numbers: list[float]) -> None:
    assert canonical_bytes(numbers) == rfc8785.dumps(numbers)


def test_known_answers_of_the_rfc() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert canonical_bytes(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical_bytes(dict.fromkeys(keys)))) == ordered


def test_order_of_insertion_does_not_show() -> None:
    keys = [f"k{n}" for n in range(50)]
    states = [{k: {"b": 1, "a": 2} for k in order} for order in (keys, keys[::-1])]
    assert canonical_bytes(states[0]) == canonical_bytes(states[1])
    assert canonical_bytes(("a", [1])) == canonical_bytes(["a", [1]])


@settings(max_examples=150, deadline=None)
@given(STATES)
@example({"a": 1e20, "b": 2.0**53, "c": -1e16, "d": 1e21})  # whole doubles that are written without a point
def test_state_is_read_back_equal(state: dict[str, Any]) -> None:
    data = canonical_bytes(state)
    assert parse_state(data) == state
    assert canonical_bytes(parse_state(data)) == data


# What is no state.


class Text(str):
    """Looks like a text."""


@pytest.mark.parametrize(
    ("value", "reason", "path", "message"),
    [
        ({"a": [1, math.nan]}, "structure", "$.a[1]", "nan is not a JSON number"),
        ({"a": math.inf}, "structure", "$.a", "inf is not a JSON number"),
        (-math.inf, "structure", "$", "-inf is not a JSON number"),
        ({"a": {"b": "x\ud800"}}, "structure", "$.a.b", "lone surrogate"),
        ({"a": {"\udfff": 1}}, "structure", "$.a", "lone surrogate"),
        ({"a": "\x00"}, "structure", "$.a", "U+0000 is not allowed"),
        ({"a": {"b\x00": 1}}, "structure", "$.a", "U+0000 is not allowed"),
        ({"a": {1: 2}}, "structure", "$.a", "key 1 is not a string"),
        ({None: 2}, "structure", "$", "key None is not a string"),
        ({Text("a"): 2}, "structure", "$", "key 'a' is not a string"),
        ({"n": 2**53}, "structure", "$.n", "integer beyond 2^53"),
        ({"n": [-(2**53)]}, "structure", "$.n[0]", "integer beyond 2^53"),
        ({"n": 10**400}, "structure", "$.n", "integer beyond 2^53"),
        ({"a": [{"b": b"x"}]}, "structure", "$.a[0].b", "bytes is not JSON data"),
        ({"a": {1, 2}}, "structure", "$.a", "set is not JSON data"),
        ({"a": Text("a")}, "structure", "$.a", "Text is not JSON data"),
        ({"a": object}, "structure", "$.a", "type is not JSON data"),
        ({str(n): 0 for n in range(KEYS_MAX + 1)}, "limit", "$", "100001 keys, 100000 allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_json_data_is_refused_with_its_place(value: Any, reason: str, path: str, message: str) -> None:
    error = refused(canonical_bytes, value)
    assert (error.reason, error.path) == (reason, path)
    assert str(error) == f"{path}: {message}"


def nested(depth: int, leaf: Any = 0) -> Any:
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_nesting_has_a_limit() -> None:
    assert parse_state(canonical_bytes(nested(DEPTH_MAX - 1) | {"other": 1})) == nested(DEPTH_MAX - 1) | {"other": 1}
    assert refused(canonical_bytes, nested(DEPTH_MAX + 1)).reason == "limit"
    assert refused(canonical_bytes, nested(100_000)).reason == "limit"
    turning: list[Any] = []
    turning.append(turning)
    error = refused(canonical_bytes, turning)
    assert error.reason == "limit"
    assert error.path == "$" + "[0]" * DEPTH_MAX


def test_long_paths_do_not_make_long_messages() -> None:
    error = refused(canonical_bytes, {"k" * 100_000: math.nan})
    assert len(str(error)) < 300
    assert len(error.path) > 100_000


class Grade(enum.IntEnum):
    GOOD = 1


class Text(str):
    __slots__ = ()


class Own(dict[str, Any]):
    pass


class Scalar:
    """As numpy's: it computes and compares like a number, and is none."""

    def __float__(self) -> float:
        return 1.0

    __index__ = __int__ = lambda self: 1


class Mute:
    def __repr__(self) -> str:
        raise OSError("no")


@pytest.mark.parametrize(
    "value",
    [
        Grade.GOOD,
        Text("a"),
        Own(a=1),
        Scalar(),
        Mute(),
        b"a",
        bytearray(b"a"),
        datetime.now(UTC),
        Decimal("1.5"),
        {1, 2},
        frozenset(),
        range(3),
        1j,
        int,
        (n for n in ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_almost_json_data_is_refused_with_its_place(value: object) -> None:
    error = refused(canonical_bytes, {"rows": [{}, {"value": value}]})
    assert (error.reason, error.path) == ("structure", "$.rows[1].value")
    assert type(value).__name__ in str(error)


@pytest.mark.parametrize(
    "key", [Text("a"), Grade.GOOD, Mute(), b"a", 10**10_000, (1, 2)], ids=lambda k: type(k).__name__
)
def test_a_key_that_is_no_text_is_refused_whatever_it_is(key: object) -> None:
    error = refused(canonical_bytes, {"rows": {key: 1}})
    assert (error.reason, error.path) == ("structure", "$.rows")
    assert len(str(error)) < 300


def test_parts_that_are_shared_are_counted_each_time() -> None:
    value: Any = {"a": 1}
    for _ in range(60):  # 10^60 values, were they looked at
        value = [value] * 10
    assert refused(canonical_bytes, {"value": value}).reason == "limit"
    tracemalloc.start()
    try:
        assert refused(canonical_bytes, {"value": ["x" * MIB] * 100_000}).reason == "limit"
        assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", [1, [], {"k": 1}, "é", [[None]]], ids=repr)
def test_nothing_is_refused_that_would_fit(item: Any) -> None:
    """What is weighed before it is written is never more than what is written."""
    size = len(canonical_bytes([item])) - 1
    eighth = [item] * ((STATE_SIZE_BYTES_MAX - 100) // 8 // size)
    assert len(canonical_bytes({"a": [eighth] * 8})) > STATE_SIZE_BYTES_MAX - 8 * size - 200


def test_only_data_that_shrinks_is_compressed() -> None:
    noise = random.Random(1).randbytes(MIB)
    for codec in ("gzip", "zstd"):
        assert compress(noise, codec=codec, min_size_bytes=0) == ("identity", noise)
        mixed = noise[: MIB // 2] + b"a" * (MIB // 2)
        assert compress(mixed, codec=codec, min_size_bytes=0)[0] == codec


def test_size_has_a_limit() -> None:
    frame = len('{"a":""}')
    assert len(canonical_bytes({"a": "x" * (STATE_SIZE_BYTES_MAX - frame)})) == STATE_SIZE_BYTES_MAX
    for size in (STATE_SIZE_BYTES_MAX - frame + 1, 20 * MIB):
        error = refused(canonical_bytes, {"a": "x" * size})
        assert error.reason == "limit"
        assert error.hint is not None and "object storage" in error.hint
    assert refused(canonical_bytes, {"a": "é" * (6 * MIB)}).reason == "limit"  # in bytes, not in characters


# What is no state's bytes.


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[1,2]",
        b'"a"',
        b"null",
        b'{"a":1',
        b'{"a":1}x',
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":1,"a":2}',
        b'{"\xef\xbf\xbf":1,"\xf0\x9f\x98\x80":2}',  # sorted as UTF-8
        b'{"a": 1}',
        b' {"a":1}',
        b'{"a":1}\n',
        b'{"a":1.0}',
        b'{"a":1e0}',
        b'{"a":-0}',
        b'{"a":0.10}',
        b'{"a":9007199254740993}',
        b'{"a":100000000000000000001}',
        b'{"a":1e999}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":"\\u0000"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\u00e9"}',
        b'{"a":"\\/"}',
        b'{"a":"\\u001F"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32-le"),
        b'{"a":' + b"1" * 100_000 + b"}",
        b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"a":' + b"[" * 1_000_000,
        b"[" * 1_000_000 + b"]" * 1_000_000,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_bytes_that_no_state_has_are_refused(data: bytes) -> None:
    error = refused(parse_state, data)
    assert error.reason in ("structure", "limit")
    assert len(str(error)) < 400


@settings(max_examples=150, deadline=None)
@given(STATES, st.data())
def test_any_bytes_are_a_state_or_an_error(state: dict[str, Any], data: st.DataObject) -> None:
    damaged = bytearray(canonical_bytes(state))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place : place + 1] = data.draw(st.binary(max_size=3))
    try:
        found = parse_state(bytes(damaged))
    except StateError:
        return
    assert canonical_bytes(found) == bytes(damaged)


# Digests.


def test_digest_is_sha_256_of_the_value_wherever_its_bytes_come_from() -> None:
    state = {"b": [1, 2.5], "a": "é"}
    assert digest_of(canonical_bytes(state)) == hashlib.sha256('{"a":"é","b":[1,2.5]}'.encode()).hexdigest()
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_chain_digest_never_changes() -> None:
    first = chain_digest_of(None, digest_of(b"1"))
    assert first == hashlib.sha256(bytes(32) + hashlib.sha256(b"1").digest()).hexdigest()
    assert first == "801b2d87516b57e17cd0cba517103bda889e8beba95fa22bd334816ae45b1771"
    assert chain_digest_of(first, digest_of(b"2")) == "6e642f24819a7678099e01389f832ab23c52ad3fc2e632b90ba501dc146aa5e6"


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=5, unique=True), st.data())
def test_chain_digest_names_the_whole_history_in_its_order(states: list[bytes], data: st.DataObject) -> None:
    def chain(history: list[bytes]) -> list[str]:
        links: list[str] = []
        for state in history:
            links.append(chain_digest_of(links[-1] if links else None, digest_of(state)))
        return links

    links = chain(states)
    assert len(set(links)) == len(links)
    other = data.draw(st.permutations(states))
    assert (chain(other)[-1] == links[-1]) == (other == states)
    for missing in range(len(states)):
        assert chain(states[:missing] + states[missing + 1 :])[-1] != links[-1]


@pytest.mark.parametrize("wrong", ["", "x", "g" * 64, "a" * 63, "a" * 65, "A" * 64, " " + "a" * 63, "a" * 64 + "\n"])
def test_chain_takes_digests_alone(wrong: str) -> None:
    assert refused(chain_digest_of, None, wrong).reason == "digest"
    if wrong:
        assert refused(chain_digest_of, wrong, "a" * 64).reason == "digest"


# Compression.

#: Shorter when compressed, by either codec.
STATE = canonical_bytes({"rows": [{"id": n, "name": f"row {n}", "done": n % 3 == 0} for n in range(40)]})


def stored(codec: str, data: bytes = STATE) -> bytes:
    used, packed = compress(data, codec=codec, min_size_bytes=0)
    assert used == codec
    return packed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000) | st.binary(min_size=1, max_size=5).map(lambda b: b * 1000), st.sampled_from(CODECS))
def test_compressed_bytes_are_read_back(data: bytes, codec: str) -> None:
    used, packed = compress(data, codec=codec, min_size_bytes=0)
    assert used in (codec, "identity")
    assert len(packed) <= len(data)
    assert decompress(packed, codec=used, size_bytes=len(data)) == data


def test_small_or_incompressible_data_is_stored_as_it_is() -> None:
    noise = random.Random(7).randbytes(5000)
    for codec in CODECS:
        assert compress(noise, codec=codec, min_size_bytes=0) == ("identity", noise)
        assert compress(b"a" * 1023, codec=codec, min_size_bytes=1024) == ("identity", b"a" * 1023)
    assert compress(b"a" * 1024, codec="gzip", min_size_bytes=1024)[0] == "gzip"
    assert compress(b"a" * 1024, codec="zstd", min_size_bytes=1024)[0] == "zstd"


@pytest.mark.parametrize("codec", ["", "lz4", "GZIP", "x" * 1000])
def test_unknown_codec_is_refused(codec: str) -> None:
    assert refused(compress, b"a" * 10, codec=codec, min_size_bytes=0).reason == "codec"
    error = refused(decompress, b"a", codec=codec, size_bytes=1)
    assert error.reason == "codec"
    assert len(str(error)) < 150


@pytest.mark.parametrize("codec", CODECS)
def test_every_cut_is_noticed(codec: str) -> None:
    packed = stored(codec)
    for length in range(len(packed)):
        assert refused(decompress, packed[:length], codec=codec, size_bytes=len(STATE)).reason in ("codec", "size")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("more", [b"\x00", b"junk", "itself"])
def test_bytes_behind_the_end_are_noticed(codec: str, more: bytes | str) -> None:
    packed = stored(codec)
    behind = packed if isinstance(more, str) else more
    assert refused(decompress, packed + behind, codec=codec, size_bytes=len(STATE)).reason in ("codec", "size")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "size", [-1, 0, 1, len(STATE) - 1, len(STATE) + 1, STATE_SIZE_BYTES_MAX, STATE_SIZE_BYTES_MAX + 1, 2**63]
)
def test_another_size_than_the_declared_one_is_noticed(codec: str, size: int) -> None:
    error = refused(decompress, stored(codec), codec=codec, size_bytes=size)
    assert error.reason == ("size" if 0 <= size <= STATE_SIZE_BYTES_MAX else "limit")


def test_a_frame_without_its_size_is_read_up_to_the_declared_one() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    packed = packer.compress(STATE) + packer.flush()
    assert zstandard.frame_content_size(packed) == -1
    assert decompress(packed, codec="zstd", size_bytes=len(STATE)) == STATE
    for size in (0, 1, len(STATE) - 1, len(STATE) + 1):
        assert refused(decompress, packed, codec="zstd", size_bytes=size).reason in ("codec", "size")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]), st.integers(0, 4000))
def test_random_bytes_raise_nothing_but_state_errors(body: bytes, magic: bytes, size: int) -> None:
    for codec in ("gzip", "zstd"):
        try:
            found = decompress(magic + body, codec=codec, size_bytes=size)
        except StateError:
            continue
        assert len(found) == size


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_bit_changes_what_is_restored(codec: str) -> None:
    """Every damage is noticed, or harmless: compressed forms can say the same in other bits, and have idle ones."""
    packed, digest = stored(codec), digest_of(STATE)
    assert verify_stored(packed, codec=codec, size_bytes=len(STATE), digest=digest) == STATE
    noticed, reasons = 0, set()
    for place in range(len(packed)):
        for bit in range(8):
            damaged = bytearray(packed)
            damaged[place] ^= 1 << bit
            try:
                found = verify_stored(bytes(damaged), codec=codec, size_bytes=len(STATE), digest=digest)
            except StateError as error:
                noticed += 1
                reasons.add(error.reason)
            else:
                assert found == STATE
    assert reasons <= {"digest", "codec", "size", "limit"}
    assert noticed >= len(packed) * 8 * (1.0 if codec == "identity" else 0.8)


@pytest.mark.parametrize("codec", CODECS)
def test_another_states_bytes_are_noticed(codec: str) -> None:
    other = STATE.replace(b"row 1", b"row 7")
    assert len(other) == len(STATE)
    error = refused(verify_stored, stored(codec, other), codec=codec, size_bytes=len(STATE), digest=digest_of(STATE))
    assert error.reason == "digest"


# Bombs. What they cost is measured in a process of its own.

BOMB_BYTES = 200 * MIB
#: What reading the largest state may cost: the state, its copy in the decoder, zstd's window and tables.
COST_BYTES_MAX = 40 * MIB
READER = """
import resource, sys
from pathlib import Path
from schemas.canonical import decompress
from schemas.errors import StateError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

file, codec, declared = sys.argv[1:]
bomb = Path(file).read_bytes()
before = peak()
try:
    decompress(bomb, codec=codec, size_bytes=int(declared))
except StateError as error:
    print(peak() - before, error.reason)
"""


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """200 MiB of zeros: gzip, zstd that says how much it is or does not, zstd with a window of 128 MiB."""
    of_level = zstandard.ZstdCompressionParameters.from_level
    wide, narrow = of_level(3, window_log=27), of_level(3, window_log=20)
    packers: dict[str, Any] = {
        "gzip": zlib.compressobj(9, zlib.DEFLATED, 31),
        "zstd": zstandard.ZstdCompressor(compression_params=narrow).compressobj(BOMB_BYTES),
        "zstd-unnamed": zstandard.ZstdCompressor(compression_params=narrow).compressobj(),
        "zstd-wide": zstandard.ZstdCompressor(compression_params=wide).compressobj(),
    }
    folder, block = tmp_path_factory.mktemp("bombs"), bytes(MIB)
    for name, packer in packers.items():
        parts = [packer.compress(block) for _ in range(BOMB_BYTES // MIB)]
        (folder / name).write_bytes(b"".join([*parts, packer.flush()]))
        assert (folder / name).stat().st_size < MIB // 4
    return {name: folder / name for name in packers}


@pytest.mark.parametrize("declared", [1000, STATE_SIZE_BYTES_MAX])
@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd-unnamed", "zstd-wide"])
def test_bomb_is_refused_before_memory_is_spent(name: str, declared: int, bombs: dict[str, Path]) -> None:
    codec = name.partition("-")[0]
    done = subprocess.run(
        [sys.executable, "-c", READER, str(bombs[name]), codec, str(declared)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cost_bytes, reason = done.stdout.split()
    assert int(cost_bytes) < COST_BYTES_MAX
    assert reason in ("size", "codec")


def test_window_wider_than_any_state_is_not_even_asked_for(bombs: dict[str, Path]) -> None:
    error = refused(decompress, bombs["zstd-wide"].read_bytes(), codec="zstd", size_bytes=1000)
    assert "requires too much memory" in str(error)


def test_declared_size_is_not_allocated_for_little_data() -> None:
    packed = zlib.compress(b"a" * 100, wbits=31)
    tracemalloc.start()
    try:
        refused(decompress, packed, codec="gzip", size_bytes=STATE_SIZE_BYTES_MAX)
        refused(decompress, stored("zstd"), codec="zstd", size_bytes=STATE_SIZE_BYTES_MAX)
        refused(decompress, b"a", codec="identity", size_bytes=STATE_SIZE_BYTES_MAX)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < MIB


def test_state_that_orjson_would_read_wrongly_is_told() -> None:
    """A parser that rounds is why numbers are checked: orjson makes a double of what is beyond 64 bits."""
    data = b'{"a":123456789012345678901234567890}'
    assert isinstance(orjson.loads(data)["a"], float)
    assert refused(parse_state, data).reason == "structure"


@pytest.mark.parametrize("size", [0, 1, 2_000, 8 * 1024 - 1, 8 * 1024, 100_000, 1_000_000])
def test_gzip_is_plain_gzip_both_ways(size: int) -> None:
    data = json.dumps({"data": [f"line {n % 1000} of a log" for n in range(size // 20)]}).encode()[:size]
    codec, stored = compress(data, codec="gzip", min_size_bytes=0)
    assert (gzip.decompress(stored) if codec == "gzip" else stored) == data
    assert decompress(gzip.compress(data), codec="gzip", size_bytes=size) == data


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 255), st.booleans())
def test_damage_of_a_large_state_is_found_or_changes_nothing(at: int, change: int, cut: bool) -> None:
    data = json.dumps({"data": [f"line {n * 7919 % 1000} of a log" for n in range(5_000)]}).encode()
    codec, stored = compress(data, codec="gzip", min_size_bytes=0)
    at %= len(stored)
    damaged = stored[:at] if cut else stored[:at] + bytes([stored[at] ^ change]) + stored[at + 1 :]
    try:
        found = verify_stored(damaged, codec=codec, size_bytes=len(data), digest=digest_of(data))
    except StateError:
        return
    assert found == data and not cut
