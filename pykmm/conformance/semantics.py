# SPDX-License-Identifier: GPL-2.0-only
"""Generated programs on the native engine, compared with the running Linux; where that cannot run them, with mmap_sem.

What is compared: the errno of every operation, why an access failed, addresses relative to the window, bytes loaded,
and the mappings of every address space in the end. Linux runs in its pages of 4 KiB, the arch in its own.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykmm.conformance.guard import note
from pykmm.conformance.programs import Layout, Program, Written, generate, write
from pykmm.conformance.report import Failure
from pykmm.machine import Machine, RunResult

if TYPE_CHECKING:
    from pykmm.conformance.subject import Subject
    from pykmm.tape import MapsLine
    from pykmm_ext.engine.host import HostMap

__all__ = ["Outcome", "base_of", "compare_programs", "host_available", "prepare"]

HOST_PAGE = 4096
_HOST_SPAN = 2 << 20     # of one page table
#: Trials for making a failing program shorter.
SHRINK = 120
_CODES = {0: "", 1: " (MAPERR)", 2: " (ACCERR)", 3: " (SIGBUS)", 4: " (out of memory)"}
_SIGSEGV, _SIGBUS = 11, 7
_ADDRESSES = ("MMAP", "MREMAP", "BRK")

Place = tuple[str, int, int] | None
#: area, start in pages and bytes of it, length in pages, perms, offset in pages
Line = tuple[str, int, int, float, str, float]


@dataclass(frozen=True)
class Outcome:
    """What a program did, in units that do not depend on the page size. By operation of the tape."""

    errnos: tuple[int, ...]
    codes: tuple[int, ...]
    places: tuple[Place, ...]               #: of results that are addresses
    loads: tuple[bytes | None, ...]         #: None: nothing was loaded, or it is not known
    maps: tuple[tuple[Line, ...], ...]   #: by address space


def host_available() -> bool:
    """Whether this kernel can run tapes (x86-64 Linux)."""
    from pykmm_ext.engine import host

    return bool(host.supported())


@functools.cache
def may_mlock() -> bool:
    """Whether a window can be locked on the running Linux."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return soft == resource.RLIM_INFINITY or soft >= 64 * 12 * HOST_PAGE


@functools.cache
def stack_is_limited() -> bool:
    """Whether stacks of the running Linux may grow as far as those of pykmm: the default."""
    import resource

    return resource.getrlimit(resource.RLIMIT_STACK)[0] == 8 << 20


def _normal(written: Written, layout: Layout, streams: int, errnos: Any, codes: Any, results: Any,
            loads: dict[int, bytes], maps: Mapping[int, Sequence[MapsLine | HostMap]]) -> Outcome:
    from pykmm.tape import OPCODES

    n = len(written.tape)
    kinds = {OPCODES[name] for name in _ADDRESSES}
    ops = written.tape.ops
    heap = int(results[written.heap])

    def place(address: int) -> Place:
        return layout.place(address, heap, streams)

    found = []
    for mm in sorted(maps):
        lines = []
        for line in maps[mm]:
            at = place(line.start)
            if at is not None and (mm not in written.windows or at[0] == f"window {written.windows[mm]}"):
                offset = line.offset / layout.page if line.name and not line.name.startswith("[") else 0
                lines.append((*at, (line.end - line.start) / layout.page, line.perms, offset))
        found.append(tuple(sorted(lines)))
    return Outcome(
        tuple(int(e) for e in errnos), tuple(int(c) & 0x7f for c in codes),
        tuple(place(int(results[i])) if int(ops["op"][i]) in kinds and not errnos[i] else None for i in range(n)),
        tuple(loads.get(i) for i in range(n)), tuple(found))


@functools.lru_cache(maxsize=8192)
def on_linux(program: Program, span: int) -> Outcome:
    """The program on the running kernel. HostEngineError where it cannot be set up."""
    import numpy as np

    from pykmm_ext.engine import host

    layout = Layout(HOST_PAGE, span)
    written = write(program, layout)
    compiled = written.tape.program()
    out = host.run(compiled, timeout=60, timing=False)
    n = len(compiled)
    order = compiled.order

    def by_tape(values: Any) -> Any:
        moved = np.empty(n, values.dtype)
        moved[order] = values
        return moved

    codes = np.where(out.signal == _SIGBUS, 3, np.where(out.signal == _SIGSEGV, out.si_code, 0))
    return _normal(written, layout, program.streams, by_tape(out.errno), by_tape(codes), by_tape(out.result),
                   {int(order[i]): bytes(data) for i, data in out.loads.items()}, out.maps)


def on_machine(machine: Machine, program: Program, layout: Layout, expected: Outcome) -> tuple[Outcome, RunResult]:
    """The program on a machine. Its loads are compared on the way: where they differ, ``loads`` has None."""
    from pykmm.tape import OPCODES

    written = write(program, layout)
    ops = written.tape.ops
    load = OPCODES["LOAD"]
    for i, data in enumerate(expected.loads):
        if data is not None and int(ops["op"][i]) == load and not expected.errnos[i]:
            ops["data"][i] = written.tape.blob(data)
    result = machine.run(written.tape)
    assert result.codes is not None
    same = {i: data for i, data in enumerate(expected.loads) if data is not None and not result.codes[i] & 0x80}
    return _normal(written, layout, program.streams, result.errnos, result.codes, result.results, same,
                   result.maps), result


def differences(names: dict[int, str], expected: Outcome, found: Outcome, who: str) -> list[str]:
    """Sentences: where the two outcomes differ."""
    import errno

    def name(number: int, code: int) -> str:
        return (errno.errorcode.get(number, str(number)) if number else "success") + _CODES.get(code, f" (code {code})")

    said = []
    for i in range(len(expected.errnos)):
        what = names.get(i, f"operation {i}")
        theirs = expected.errnos[i], expected.codes[i] if expected.errnos[i] else 0
        ours = found.errnos[i], found.codes[i] if found.errnos[i] else 0
        if theirs != ours:
            said.append(f"{what}: {name(*ours)}, {who}: {name(*theirs)}")
        elif expected.places[i] != found.places[i]:
            said.append(f"{what}: gave {_place(found.places[i])}, {who}: {_place(expected.places[i])}")
        elif not theirs[0] and expected.loads[i] is not None and found.loads[i] is None:
            said.append(f"{what}: loaded other bytes than {who}, which has {expected.loads[i]!r}")
    for mm, (theirs_maps, ours_maps) in enumerate(zip(expected.maps, found.maps, strict=False)):
        if theirs_maps != ours_maps:
            missing = [_mapping(line) for line in theirs_maps if line not in ours_maps]
            extra = [_mapping(line) for line in ours_maps if line not in theirs_maps]
            said.append(f"mappings of address space {mm} in the end: {'; '.join(extra) or 'nothing'}, "
                        f"{who}: {'; '.join(missing) or 'nothing'}")
    if len(expected.maps) != len(found.maps):
        said.append(f"{len(found.maps)} address spaces in the end, {who}: {len(expected.maps)}")
    return said


def _place(place: Place) -> str:
    if place is None:
        return "an address elsewhere"
    return f"page {place[1]}{f' {place[2]:+d}' if place[2] else ''} of {place[0]}"


def _mapping(line: Line) -> str:
    return f"pages {line[1]} to {line[1] + line[3]:g} of {line[0]} {line[4]} offset {line[5]:g}"


def compare_programs(subject: Subject, kind: str) -> tuple[str, list[Failure]]:
    """Programs of one kind, and what was done in words. Where one differs, the shortest that does is shown."""
    from pykmm.errors import InvariantViolation

    oracle: Oracle = LinuxOracle(subject) if host_available() else StrategyOracle(subject)
    layout = Layout(subject.page, subject.table_span, base_of(subject))
    failures: list[Failure] = []
    operations = 0
    done = 0
    try:
        with subject.machine(cpus=8) as machine:
            for program in _programs(subject, kind):
                expected = oracle.outcome(program)
                if expected is None:
                    continue
                note(f"program {kind} {program.seed}")
                found, result = on_machine(machine, program, layout, expected)
                operations += len(result.tape)
                done += 1
                said = differences(write(program, layout).names, expected, found, oracle.name)
                if not said:
                    try:
                        machine.validate()
                    except InvariantViolation as error:
                        said = [f"Machine.validate() afterwards: {error}"]
                if said and not failures:
                    failures.append(_shortest(subject, program, layout, oracle, said))
                elif said:
                    failures.append(Failure(f"program {program.kind} {program.seed}: {said[0]}", "",
                                            write(program, layout).tape))
                if any("validate()" in line for line in said) or len(failures) == 3:
                    break
    except InvariantViolation as error:
        failures.append(Failure(f"closing the machine after {done} programs: {error}",
                                subject.replay(f"semantics-{kind}")))
    finally:
        oracle.close()
    return (f"{done} programs, {operations:,} operations compared with {oracle.name}"
            + (f" in pages of {HOST_PAGE >> 10}K, here {subject.page >> 10}K" if isinstance(oracle, LinuxOracle)
               and subject.page != HOST_PAGE else "")), failures


def prepare(subject: Subject, kind: str) -> None:
    """Let the running kernel do its part: it says the same to every strategy and arch."""
    if host_available():
        for program in _programs(subject, kind):
            on_linux(program, _HOST_SPAN)


def base_of(subject: Subject) -> int:
    """An address that user space has, at which one page table ends and the next begins."""
    base = Layout.base
    if base >= subject.task_size // 4 * 3:
        base = subject.task_size // 2
    return base // subject.table_span * subject.table_span


def _programs(subject: Subject, kind: str) -> Iterator[Program]:
    for turn in range(subject.effort.tapes):
        yield generate(kind, subject.seed * 1_000_003 + turn, mlock=may_mlock(), stack=stack_is_limited())


class Oracle:
    """Who is right. ``outcome`` may be None where it cannot say."""

    name = ""

    def outcome(self, program: Program) -> Outcome | None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is needed any more."""


class LinuxOracle(Oracle):
    """The running kernel."""

    def __init__(self, subject: Subject) -> None:
        self.name = "the running Linux"

    def outcome(self, program: Program) -> Outcome | None:
        return on_linux(program, _HOST_SPAN)


class StrategyOracle(Oracle):
    """mmap_sem on the same arch, where there is no kernel to ask."""

    def __init__(self, subject: Subject) -> None:
        self.name = "strategy mmap_sem"
        self.layout = Layout(subject.page, subject.table_span, base_of(subject))
        self.machine = Machine(arch=subject.make_arch(), strategy="mmap_sem", cpus=8, memory=16384 * subject.page,
                               fault_around=subject.page)

    def outcome(self, program: Program) -> Outcome | None:
        return on_machine(self.machine, program, self.layout, Outcome((), (), (), (), ()))[0]

    def close(self) -> None:
        self.machine.close()


def _differs(subject: Subject, program: Program, layout: Layout, oracle: Oracle, tries: int) -> list[str]:
    """What a new machine says to the program, in the first of `tries` runs that differs."""
    from pykmm.errors import InvariantViolation

    expected = oracle.outcome(program)
    if expected is None:
        return []
    names = write(program, layout).names
    for _ in range(tries):
        try:
            with subject.machine(cpus=8, frames=2048) as machine:
                said = differences(names, expected, on_machine(machine, program, layout, expected)[0],
                                   oracle.name)
                machine.validate()
        except InvariantViolation as error:
            said = [f"Machine.validate() afterwards: {error}"]
        if said:
            return said
    return []


def _shortest(subject: Subject, program: Program, layout: Layout, oracle: Oracle, said: list[str]) -> Failure:
    """Steps are left out as long as it still differs."""
    tries = 1 if program.ordered else 5
    trials = SHRINK
    again = _differs(subject, program, layout, oracle, tries)
    how = ""
    if again:
        said = again
        index = len(program.steps) - 1
        while index >= 0 and trials > 0:
            shorter = program.without(index)
            trials -= 1
            found = _differs(subject, shorter, layout, oracle, tries)
            if found:
                program, said = shorter, found
                index = min(index, len(program.steps))
            index -= 1
        how = " (shortened)"
    tape = write(program, layout).tape
    return Failure(
        "\n".join([*said[:4], *([f"and {len(said) - 4} more differences"] if len(said) > 4 else [])]),
        f"program {program.kind} {program.seed}{how}:\n{program}\n"
        f"{subject.replay(f'semantics-{program.kind}')}", tape)
