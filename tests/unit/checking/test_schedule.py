# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/schedule.py: replay tokens."""
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykmm.checking.schedule import Token, TokenError, decode, decode_schedule, encode_schedule, switches

STEPS = st.lists(st.builds(lambda agent, choice: agent | choice << 8, st.integers(0, 63), st.integers(0, 63)))


@given(STEPS)
def test_schedules_come_back(steps: list[int]) -> None:
    assert decode_schedule(encode_schedule(steps)) == tuple(steps)


@given(STEPS, st.text(min_size=1), st.text(), st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_tokens_come_back(steps: list[int], name: str, variant: str, options: dict[str, str]) -> None:
    token = Token(name, variant, "0123abcd", "tso", tuple(steps), options)
    text = str(token)
    assert decode(text) == token
    assert len(text.split()) == 1
    assert re.fullmatch(r"[\w:;=/%.~-]+", text, re.ASCII), "nothing that a shell would touch but the semicolon"


def test_runs_are_counted() -> None:
    assert encode_schedule((0, 0, 0, 1, 4 | 2 << 8, 4 | 2 << 8, 0)) == "0x3-1-4.2x2-0"
    assert encode_schedule(()) == "-"
    assert switches((0, 0, 1, 0)) == 2
    assert switches(()) == 0


def test_line_breaks_do_not_matter() -> None:
    text = str(Token("a", "buggy", "0123abcd", "sc", (0, 1, 0, 1)))
    assert decode(f"  {text[:20]}\n{text[20:]}\n") == decode(text)


@pytest.mark.parametrize("change", [lambda t: t[:-3], lambda t: t.replace("0x2", "0x3"),
                                    lambda t: t.replace(":sc:", ":tso:"), lambda t: t.partition("-")[0],
                                    lambda t: t + "0"])
def test_a_changed_token_is_an_error(change: object) -> None:
    text = str(Token("a", "", "0123abcd", "sc", (0, 0, 1)))
    with pytest.raises(TokenError, match="cut off or changed"):
        decode(change(text))  # type: ignore[operator]


def test_other_versions_and_other_things() -> None:
    text = str(Token("a", "", "0123abcd", "sc", (0, 0, 1)))
    with pytest.raises(TokenError, match="version 2; this pykmm has version 1"):
        decode(text.replace("pykmm1", "pykmm2"))
    with pytest.raises(TokenError, match="not a replay token"):
        decode("hello")
    for bad in ("x", "0x", "1.2.3", "999", "0x99999999", "0-", "0xx2", "-1"):
        with pytest.raises(TokenError):
            decode_schedule(bad)
