# SPDX-License-Identifier: GPL-2.0-only
"""Replay tokens: one line of text that leads back to one execution.

``pykmm1:R5-vma-freed-at-once/buggy:1b2c3d4e:tso:0x12-1x3-4-0.2:9f00aa11`` has these parts, separated by colons:

1. ``pykmm`` and the version of the format;
2. the name of what was run, ``/variant`` where it has variants, ``;key=value`` for every other choice that was made;
3. a hash of everything that the program was made from;
4. the memory model;
5. the schedule, run-length coded: ``agent``, ``agentxTIMES``, ``agent.choice``, ``agent.choicexTIMES``. Agents are
   numbered as the engine does it: the virtual CPUs, their interrupt handlers, their store buffers. A choice is a value
   of ``check_choose()``, or how old the value is that a load returned;
6. a check sum of what stands before it.
"""
from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import quote, unquote

__all__ = ["VERSION", "Token", "TokenError", "decode", "encode_schedule", "decode_schedule", "switches"]

#: Version of the format and of what schedules mean to the engine.
VERSION = 1
#: An execution of more steps is a livelock, unless something else is asked for.
DEFAULT_STEPS = 100_000
#: A schedule longer than this is not believed (an execution has at most 50 million steps, all of them rarely).
MAX_STEPS = 50_000_000

_RUN = re.compile(r"(\d{1,3})(?:\.(\d{1,3}))?(?:x(\d{1,8}))?")


class TokenError(ValueError):
    """A replay token that is damaged, of another version, or made from something else."""


@dataclass(frozen=True)
class Token:
    """What a replay token says."""

    name: str
    variant: str                            #: "fixed", "buggy", or "" where there is none
    digest: str                             #: 8 hexadecimal digits
    memory_model: str
    schedule: tuple[int, ...]               #: agent | choice << 8, a step each
    options: Mapping[str, str] = field(default_factory=dict)    #: choices that differ from the variant's own

    @property
    def max_steps(self) -> int:
        """An execution of more steps is a livelock. TokenError: the token says something else."""
        steps = self.options.get("steps", str(DEFAULT_STEPS))
        if not steps.isdecimal() or not 0 < int(steps) <= MAX_STEPS:
            raise TokenError(f"steps={steps} is no number of steps")
        return int(steps)

    def __str__(self) -> str:
        what = quote(self.name, safe="")
        if self.variant:
            what += f"/{quote(self.variant, safe='')}"
        for key, value in sorted(self.options.items()):
            what += f";{quote(key, safe='')}={quote(value, safe='')}"
        text = f"pykmm{VERSION}:{what}:{self.digest}:{self.memory_model}:{encode_schedule(self.schedule)}"
        return f"{text}:{zlib.crc32(text.encode()):08x}"


def encode_schedule(schedule: Sequence[int]) -> str:
    """The fifth part of a token. An empty schedule is ``-``."""
    runs = []
    for step, same in groupby(schedule):
        times = sum(1 for _ in same)
        text = str(step & 0xff)
        if step >> 8:
            text += f".{step >> 8}"
        if times > 1:
            text += f"x{times}"
        runs.append(text)
    return "-".join(runs) or "-"


def decode_schedule(text: str) -> tuple[int, ...]:
    """The opposite of :func:`encode_schedule`. TokenError where it is no schedule."""
    if text == "-":
        return ()
    schedule: list[int] = []
    for part in text.split("-"):
        match = _RUN.fullmatch(part)
        if match is None:
            raise TokenError(f"{part!r} is no part of a schedule")
        agent, choice, times = int(match[1]), int(match[2] or 0), int(match[3] or 1)
        if agent > 0xff or choice > 0xff or len(schedule) + times > MAX_STEPS:
            raise TokenError(f"{part!r} is no part of a schedule")
        schedule += [agent | choice << 8] * times
    return tuple(schedule)


def decode(text: str) -> Token:
    """Reads a token; spaces around it and line breaks inside of it do not matter. TokenError says what is wrong."""
    text = "".join(text.split())
    parts = text.split(":")
    version = re.fullmatch(r"pykmm(\d+)", parts[0])
    if version is None:
        raise TokenError(f"not a replay token (they begin with pykmm{VERSION}:)")
    if int(version[1]) != VERSION:
        raise TokenError(f"a replay token of version {version[1]}; this pykmm has version {VERSION}")
    if len(parts) != 6:
        raise TokenError("the replay token was cut off or changed: it has six parts separated by colons")
    body, crc = text.rpartition(":")[::2]
    if crc != f"{zlib.crc32(body.encode()):08x}":
        raise TokenError("the replay token was cut off or changed: its check sum does not fit")
    what, *choices = parts[1].split(";")
    name, _, variant = what.partition("/")
    options = {}
    for choice in choices:
        key, _, value = choice.partition("=")
        options[unquote(key)] = unquote(value)
    return Token(unquote(name), unquote(variant), parts[2], parts[3], decode_schedule(parts[4]), options)


def switches(schedule: Iterable[int]) -> int:
    """How often the agent changes from one step to the next."""
    count, before = -1, -1
    for step in schedule:
        if step & 0xff != before:
            count, before = count + 1, step & 0xff
    return max(count, 0)
