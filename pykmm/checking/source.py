# SPDX-License-Identifier: GPL-2.0-only
"""What is checked, in a form that can be sent to another process and made there again."""
from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pykmm

if TYPE_CHECKING:
    from pykmm.checking.scenario import Config, Scenario
    from pykmm.checking.schedule import Token
    from pykmm.tape import Tape
    from pykmm_ext.engine.check import Program

    Checkable = str | Scenario | Tape | Program | Callable[[], Program]

__all__ = ["VARIANTS", "Source", "find"]

VARIANTS = ("fixed", "buggy")


@dataclass(frozen=True)
class Source:
    """A program of the check engine, by what it is made from."""

    name: str
    variant: str                                #: "fixed", "buggy", or ""
    config: str                                 #: what it runs on, in words
    digest: str                                 #: 8 hexadecimal digits over everything that it is made from
    make: Callable[[], Program]                 #: a new program each time; picklable where processes are used
    memory_model: str                           #: unless the caller wants another
    preemptions: int | None = None              #: as far as the configuration promises the search to be possible
    options: Mapping[str, str] = field(default_factory=dict)    #: choices of the caller, for tokens
    expected: frozenset[str] = frozenset()      #: kinds of violations that this variant shows

    def program(self) -> Program:
        """A new program."""
        return self.make()

    def check_token(self, token: Token) -> None:
        """TokenError where `token` was not made from this."""
        from pykmm.checking.schedule import TokenError

        for what, mine, its in (("scenario", self.name, token.name), ("variant", self.variant, token.variant)):
            if mine != its:
                raise TokenError(f"the replay token is of {what} {its!r}, not of {mine!r}")
        if token.digest != self.digest:
            raise TokenError(f"the replay token was made from another {self.name!r}: the operations, the configuration "
                             f"or the version of pykmm (this is {pykmm.__version__}) have changed since")


def _digest(*parts: object) -> str:
    found = hashlib.sha256(pykmm.__version__.encode())
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:8]


def _tape_digest(tape: Tape) -> str:
    return _digest(tape.ops.tobytes(), tape.blobs, tape.threads, tape.files, tape.edges, tape.recorded, tape.mms)


def _make_tape(tape: Tape, config: Config, cpus: int) -> Program:
    from pykmm.checking.program import make_program

    return make_program(tape, config.strategy, config.arch, cpus=cpus, memory=config.memory, quirks=config.quirks,
                        fault_around=config.fault_around)


def _memory_model(arch: str) -> str:
    from pykmm.plugin import get_plugin_manager

    return str(get_plugin_manager().arches.make(arch).memory_model)


def _of_tape(tape: Tape, name: str, variant: str, config: Config, cpus: int | None, options: dict[str, str],
             expected: frozenset[str]) -> Source:
    from pykmm.plugin import get_plugin_manager

    manager = get_plugin_manager()
    manager.strategies.parse(config.strategy)   # unknown names are found here, not in a worker
    manager.arches.parse(config.arch)
    count = tape.program().nstreams if cpus is None else cpus
    return Source(
        name, variant, str(config), _digest(_tape_digest(tape), config, count),
        functools.partial(_make_tape, tape, config, count),
        config.memory_model or _memory_model(config.arch), config.preemptions, options, expected)


def _on_arch(config: Config, changed: dict[str, str]) -> Config:
    """What the caller asks for instead; sizes that it does not name grow with the pages of the arch."""
    config = replace(config, **changed)  # type: ignore[arg-type]
    scaled = config.scaled()
    return replace(scaled, memory=config.memory) if "memory" in changed else scaled


class _Made:
    """A program that exists already: only for this process, and one search at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self) -> Program:
        return self.program

    def __reduce__(self) -> Any:
        raise TypeError("a program cannot be sent to another process: give pykmm.check() a function that makes it")


def find(what: Checkable, *, variant: str = "fixed", strategy: str | None = None, arch: str | None = None,
         cpus: int | None = None, memory: str | None = None) -> Source:
    """The source that a scenario, a name of one, a tape, a program, or a function that makes one stands for.

    `strategy`, `arch` and `memory` replace what the scenario's variant has. ValueError: unknown names, a variant that
    there is not, or an option for something that has its own machine.
    """
    from pykmm.checking.scenario import Config, Scenario, get
    from pykmm.tape import Tape

    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    scenario = get(what) if isinstance(what, str) else what
    changed = {key: value for key, value in (("strategy", strategy), ("arch", arch), ("memory", memory))
               if value is not None}
    if isinstance(scenario, Tape):
        options = dict(changed) | ({} if cpus is None else {"cpus": str(cpus)})
        return _of_tape(scenario, "tape", "", _on_arch(Config(), changed), cpus, options, frozenset())
    if isinstance(scenario, Scenario):
        config = scenario.fixed if variant == "fixed" else scenario.buggy
        if config is None:
            raise ValueError(f"scenario {scenario.name!r} has no buggy variant")
        if variant == "buggy" and not scenario.shown:
            raise ValueError(f"the bug of {scenario.name!r} is a data race of plain accesses, which this build of pykmm"
                             " does not see: build it with PYKMM_PLAIN=1 (docs: Check plain accesses)")
        options = {key: value for key, value in changed.items() if value != getattr(config, key)}
        if cpus is not None:
            options["cpus"] = str(cpus)
        expected = scenario.expected if variant == "buggy" and not options else frozenset()
        config = _on_arch(config, changed)
        tape: object = scenario.tape(config.page_size, config.table_span)
        if isinstance(tape, Tape):
            return _of_tape(tape, scenario.name, variant, config, cpus, options, expected)
        raise TypeError(f"scenario {scenario.name!r} builds a {type(tape).__name__}, not a Tape")
    if changed or cpus is not None:
        raise ValueError("strategy, arch, cpus and memory are for tapes and scenarios")
    from pykmm_ext.engine.check import Program

    if isinstance(scenario, Program):
        name = type(scenario).__name__.lower()
        return Source(name, "", "", _digest(name, scenario.nr_vcpus), _Made(scenario), "tso")
    if callable(scenario):
        name = str(getattr(scenario, "__name__", type(scenario).__name__))
        where = getattr(scenario, "__module__", "")
        return Source(name, "", "", _digest(where, name), scenario, "tso")
    raise TypeError("pykmm.check() takes a Tape, a Scenario, the name of a scenario, a Program, or a function that "
                    f"makes one, not {type(what).__name__}")
