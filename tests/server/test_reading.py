"""JSON from outside."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safelight.server.reading import BODY, DEPTH, Most, read

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


@given(PLAIN)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_json_is_read_as_it_is(data: Any) -> None:
    assert read(json.dumps(data).encode()) == data


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"1e999", "too large"),
        (b"1" + b"0" * 4000, "64 bits"),
        (b"18446744073709551616", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b'{"a":1,"a":2}', "twice"),
        (b'[{"b":{"c":1,"c":1}}]', "twice"),
        (b"\xff", "UTF-8"),
        (b'"\\ud800"', "UTF-8"),
        (b'{"a":"\\uDFFF x"}', "UTF-8"),
        (b"{", "Expecting"),
        (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "levels"),
        (b"", "Expecting"),
        (b" " * (BODY + 1), "at most"),
    ],
)
def test_what_is_not_sound_is_refused_in_words(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(raw)


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from(["[]", "{}"]), st.text('[]{}\\" ', max_size=20))
def test_depth_counts_brackets_and_not_those_in_texts(depth: int, kind: str, text: str) -> None:
    opening = "[" if kind == "[]" else '{"k":'
    raw = (opening * depth + json.dumps(text * 30) + kind[1] * depth).encode()
    if depth <= DEPTH:
        read(raw)
    else:
        with pytest.raises(ValueError, match="levels"):
            read(raw)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        found = read(text.encode("utf-8", "surrogatepass"))
    except ValueError:
        return
    assert not isinstance(found, float) or math.isfinite(found)


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"steps": 1001}, "steps"),
        ({"width": 8192, "height": 4096}, "pixels"),
        ({"batch_size": 65}, "batch"),
        ({"seeds": list(range(65))}, "seeds"),
        ({"count": 100}, "batch"),
        ({"num_images_per_prompt": 100}, "batch"),
        ({"left": 16384, "bottom": 16384}, "pixels"),
        ({"target_width": 16384, "target_height": 16384}, "pixels"),
        ({"steps": 1000, "width": 4096, "height": 4096, "batch_size": 64}, ""),
        ({"steps": 5000, "rank": 4}, ""),
        ({"width": ["1", 0], "steps": "many"}, ""),
    ],
)
def test_a_prompt_may_ask_for_so_much(inputs: dict[str, Any], what: str) -> None:
    assert what in Most().refused([{"class_type": "x", "inputs": inputs}])
    assert bool(what) == bool(Most().refused([{"class_type": "x", "inputs": inputs}]))
