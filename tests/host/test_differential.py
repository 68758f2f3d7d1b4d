# SPDX-License-Identifier: GPL-2.0-only
"""pykmm against the running kernel: the same calls, the same errno, signals, maps, residency and contents.

Programs of mmap, munmap, mprotect and touches of anonymous memory in a window of a few pages are made by hypothesis.
Where pykmm and Linux differ, Linux is right.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pykmm
from pykmm.machine import run_host
from pykmm.tape import OPCODES, MapsLine, Tape
from pykmm_ext.engine import host

pytestmark = pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
PAGE = 4096
PAGES = 12
BASE = 0x7f12_3456_7000
PRIVATE, FIXED, ANONYMOUS, NOREPLACE = 0x02, 0x10, 0x20, 0x100000
STRATEGIES = ("mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount")
EXAMPLES = int(os.environ.get("PYKMM_DIFFERENTIAL_EXAMPLES", "100"))

Operation = tuple[Any, ...]
Program = list[Operation]
#: errno, signal's si_code name or "", faulting address, bytes loaded
Outcome = tuple[int, str, int, bytes]

page = st.integers(0, PAGES - 1)
count = st.integers(1, 6)
prot = st.sampled_from([3, 1, 0, 3, 7, 5, 2])
stream = st.integers(0, 1)


def span(first: int, pages: int) -> tuple[int, int]:
    """Address and length; stays inside the window."""
    return BASE + first * PAGE, min(pages, PAGES - first) * PAGE


ranges = st.builds(span, page, count)
odd_ranges = st.one_of(ranges, ranges, ranges, ranges, st.builds(
    lambda r, shift, length: (r[0] + shift, length), ranges, st.sampled_from([0, 1, 0x800]),
    st.sampled_from([0, 1, 0x1001, 1 << 62, (1 << 64) - 1])))
mmaps = st.builds(lambda s, r, p, flags: ("mmap", s, *r, p, flags), stream, odd_ranges, prot,
                  st.sampled_from([FIXED, FIXED, NOREPLACE, FIXED | NOREPLACE]))
munmaps = st.builds(lambda s, r: ("munmap", s, *r), stream, odd_ranges)
mprotects = st.builds(lambda s, r, p: ("mprotect", s, *r, p), stream, odd_ranges, prot)
touches = st.builds(lambda s, r, access: ("touch", s, *r, access), stream, ranges, st.sampled_from(["read", "write"]))
stores = st.builds(lambda s, first, offset, data: ("store", s, BASE + first * PAGE + offset, data), stream, page,
                   st.sampled_from([0, 1, PAGE - 2]), st.binary(min_size=1, max_size=4))
loads = st.builds(lambda s, first, offset: ("load", s, BASE + first * PAGE + offset, 4), stream, page,
                  st.sampled_from([0, PAGE - 2]))
basic = st.lists(st.one_of(mmaps, mmaps, munmaps, mprotects, touches, stores, loads), min_size=1, max_size=25)

advices = st.builds(lambda s, r, advice: ("madvise", s, *r, advice), stream, odd_ranges,
                    st.sampled_from(["DONTNEED", "DONTNEED", "DONTFORK", "DOFORK", "WILLNEED", 4711]))
mremaps = st.builds(lambda s, old, new, flags: ("mremap", s, *old, new[1], flags, new[0]), stream, ranges, ranges,
                    st.sampled_from([0, 0, 3]))
wide = st.lists(st.one_of(mmaps, mmaps, munmaps, mprotects, touches, stores, loads, advices, mremaps),
                min_size=1, max_size=25)

OPTIONS = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 100,
                   suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def write_tape(program: Program) -> tuple[Tape, list[int]]:
    """Two streams, every operation after the one before it; then what is left, page by page."""
    tape = Tape()
    streams = [tape.thread(), tape.thread()]
    made: list[int] = []
    for name, number, *arguments in program:
        writer = streams[number]
        if name == "mmap":
            addr, length, protection, flags = arguments
            op: Any = writer.mmap(length, protection, addr=addr, flags=flags | PRIVATE | ANONYMOUS)
        elif name == "mremap":
            old, old_length, new_length, flags, new = arguments
            op = writer.mremap(old, old_length, new_length, flags, new)
        else:
            op = getattr(writer, name)(*arguments)
        at = op if isinstance(op, int) else op.op
        if made:
            tape.edges.append((made[-1], at))
        made.append(at)
    for number in range(PAGES):
        made.append(tape.final.mincore(BASE + number * PAGE, PAGE))
    for number in range(PAGES):
        made.append(tape.final.load(BASE + number * PAGE, PAGE))
    return tape, made


def on_linux(program: Program) -> tuple[list[Outcome], list[MapsLine], list[bool]]:
    tape, made = write_tape(program)
    compiled = tape.program()
    result = host.run(compiled, timeout=60, timing=False, pagemap=[(0, BASE, PAGES)])
    place = {int(op): i for i, op in enumerate(compiled.order)}
    outcomes: list[Outcome] = []
    for op in made:
        i = place[op]
        code = {0: "", 1: "MAPERR", 2: "ACCERR"}[int(result.si_code[i])]
        outcomes.append((int(result.errno[i]), code, int(result.fault_addr[i]), result.loads.get(i, b"")))
    maps = [MapsLine(line.start, line.end, line.perms) for line in result.maps[0]]
    return outcomes, maps, [bool(word >> 63) for word in result.pagemap[0, BASE].tolist()]


def on_pykmm(machine: pykmm.Machine, program: Program) -> tuple[list[Outcome], list[MapsLine], list[bool]]:
    mm = machine.mm()
    outcomes: list[Outcome] = []

    def call(name: str, cpu: int, arguments: list[Any]) -> bytes:
        if name == "mmap":
            addr, length, protection, flags = arguments
            mm.mmap(addr, length, protection, flags | PRIVATE | ANONYMOUS, cpu=cpu)
        elif name == "touch":
            mm.touch(arguments[0], arguments[1], arguments[2][0], cpu=cpu)
        elif name == "madvise":
            advice = {"DONTNEED": 4, "WILLNEED": 3, "DONTFORK": 10, "DOFORK": 11}.get(arguments[2], arguments[2])
            mm.madvise(arguments[0], arguments[1], advice, cpu=cpu)
        elif name == "mremap":
            old, old_length, new_length, flags, new = arguments
            mm.mremap(old, old_length, new_length, flags, new, cpu=cpu)
        else:
            got = getattr(mm, name)(*arguments, cpu=cpu)
            return got if isinstance(got, bytes) else b""
        return b""

    final = [("mincore", 0, BASE + n * PAGE, PAGE) for n in range(PAGES)]
    final += [("load", 0, BASE + n * PAGE, PAGE) for n in range(PAGES)]
    try:
        for name, cpu, *arguments in [*program, *final]:
            try:
                outcomes.append((0, "", 0, call(name, cpu, arguments)))
            except OSError as error:
                outcomes.append((error.errno or 0, "", 0, b""))
            except pykmm.SegmentationFault as fault:
                outcomes.append((14, fault.code, fault.address, b""))
        maps = [MapsLine(vma.start, vma.end, vma.perms) for vma in mm.vmas]
        present = [bool(word >> 63) for word in mm.pagemap(BASE, PAGES)]
        machine.validate()
    finally:
        mm.exit()
    return outcomes, maps, present


@pytest.fixture(scope="module", params=STRATEGIES)
def machine(request: pytest.FixtureRequest) -> Iterator[pykmm.Machine]:
    with pykmm.Machine(strategy=request.param, cpus=2, memory="64M") as made:
        yield made


def compare(machine: pykmm.Machine, program: Program) -> None:
    linux, simulated = on_linux(program), on_pykmm(machine, program)
    named = [*program, *(("mincore", n) for n in range(PAGES)), *(("load", n) for n in range(PAGES))]
    for operation, theirs, ours in zip(named, linux[0], simulated[0], strict=True):
        assert (operation, ours) == (operation, theirs)
    assert [str(line) for line in simulated[1]] == [str(line) for line in linux[1]]
    assert simulated[2] == linux[2]


@OPTIONS
@given(basic)
@example([("mmap", 0, BASE, 4 * PAGE, 3, FIXED), ("store", 1, BASE, b"x"), ("mprotect", 1, BASE + PAGE, PAGE, 1),
          ("munmap", 0, BASE + 2 * PAGE, PAGE), ("touch", 1, BASE, 4 * PAGE, "write")])
@example([("mmap", 0, BASE, PAGE, 3, FIXED), ("touch", 0, BASE, PAGE, "write"),
          ("mmap", 1, BASE + 2 * PAGE, PAGE, 3, FIXED), ("touch", 1, BASE + 2 * PAGE, PAGE, "write"),
          ("mmap", 0, BASE + PAGE, PAGE, 3, FIXED)])
@example([("mmap", 0, BASE, 3 * PAGE, 3, FIXED), ("touch", 0, BASE, 3 * PAGE, "write"),
          ("mprotect", 0, BASE + PAGE, PAGE, 0), ("load", 1, BASE + PAGE, 4), ("mprotect", 1, BASE + PAGE, PAGE, 3)])
def test_anonymous_memory(machine: pykmm.Machine, program: Program) -> None:
    compare(machine, program)


@OPTIONS
@given(wide)
@example([("mmap", 0, BASE, 2 * PAGE, 3, FIXED), ("store", 0, BASE, b"kept"), ("madvise", 1, BASE, PAGE, "DONTNEED"),
          ("load", 0, BASE, 4)])
@example([("mmap", 0, BASE, 2 * PAGE, 3, FIXED), ("store", 0, BASE, b"kept"),
          ("mremap", 1, BASE, 2 * PAGE, 3 * PAGE, 3, BASE + 4 * PAGE), ("load", 0, BASE + 4 * PAGE, 4)])
@example([("mmap", 0, BASE, 2 * PAGE, 3, FIXED),         # what a shrinking mremap drops need not be mapped
          ("mremap", 0, BASE + PAGE, 2 * PAGE, PAGE, 3, BASE)])
def test_with_madvise_and_mremap(machine: pykmm.Machine, program: Program) -> None:
    compare(machine, program)


@OPTIONS
@given(basic)
def test_the_native_engine(machine: pykmm.Machine, program: Program) -> None:
    tape, _ = write_tape(program)
    simulated, linux = machine.run(tape), run_host(tape)
    kinds = [int(op) for op in tape.ops["op"]]
    seen = [(i, kind, int(simulated.errnos[i])) for i, kind in enumerate(kinds)]
    assert seen == [(i, kind, int(linux.errnos[i])) for i, kind in enumerate(kinds)]
    mapped = [i for i, kind in enumerate(kinds) if kind == OPCODES["MMAP"]]
    assert simulated.results[mapped].tolist() == linux.results[mapped].tolist()
    assert [(m.start, m.end, m.perms) for m in simulated.maps[0]] == [(m.start, m.end, m.perms) for m in linux.maps[0]]
    machine.validate()


# ---- truncation ----------------------------------------------------------------------------------

FILE_PAGES = 4
bytes_in_file = st.integers(0, FILE_PAGES * PAGE - 1)
file_operations = st.lists(st.one_of(
    st.tuples(st.just("truncate"), stream, st.one_of(
        st.sampled_from([n * PAGE for n in range(FILE_PAGES + 1)]), bytes_in_file)),
    st.tuples(st.just("store"), stream, st.booleans(), bytes_in_file, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("load"), stream, st.booleans(), bytes_in_file),
    st.tuples(st.just("munmap"), stream, st.booleans(), page.filter(lambda n: n < FILE_PAGES)),
), min_size=1, max_size=20)


@OPTIONS
@given(file_operations)
def test_truncation(machine: pykmm.Machine, program: list[tuple[Any, ...]]) -> None:
    """A file mapped shared and private, cut and grown again; loads come back with what Linux has there.

    A store behind the end of the file in its last page is left out: whether it shows after the file has grown again is
    up to the file system.
    """
    tape = Tape()
    tape.file("f", data=b"".join(bytes([65 + n]) * PAGE for n in range(FILE_PAGES)))
    streams = [tape.thread(), tape.thread()]
    where = [streams[0].mmap(FILE_PAGES * PAGE, shared=True, file="f"), streams[0].mmap(FILE_PAGES * PAGE, file="f")]
    last, size = where[1].op, FILE_PAGES * PAGE
    for name, number, *arguments in program:
        writer = streams[number]
        if name == "truncate":
            size = arguments[0]
            op = writer.truncate("f", size)
        elif name == "store":
            private, at, data = arguments
            if at < size < at + len(data) or (at // PAGE == size // PAGE and at >= size):
                continue
            op = writer.store(where[private] + at, data)
        elif name == "load":
            op = writer.load(where[arguments[0]] + arguments[1], 1)
        else:
            op = writer.munmap(where[arguments[0]] + arguments[1] * PAGE, PAGE)
        tape.edges.append((last, op))
        last = op
    ends = [tape.final.load(base + n * PAGE, PAGE) for base in where for n in range(FILE_PAGES)]
    compiled = tape.program()
    result = host.run(compiled, timeout=60, timing=False)
    place = {int(op): i for i, op in enumerate(compiled.order)}
    simulated = machine.run(tape)
    machine.validate()
    expected = [int(result.errno[place[op]]) for op in range(len(tape))]
    assert simulated.errnos.tolist() == expected
    # Once more, with what Linux loaded as expectations.
    for op in (i for i in range(len(tape)) if tape.ops["op"][i] == OPCODES["LOAD"] and not expected[i]):
        tape.ops["data"][op] = tape.blob(result.loads[place[op]])
    assert not machine.run(tape).mismatches
    assert ends
