# SPDX-License-Identifier: GPL-2.0-only
"""pykmm against the running kernel: the same calls, the same errno, signals, maps, residency and contents.

Programs of mmap, munmap, mprotect and touches of anonymous memory in a window of a few pages are made by hypothesis.
Where pykmm and Linux differ, Linux is right.

Every arch is compared, those with 64 KiB pages too, though the pages of the running kernel have 4 KiB: a program is
written in pages, and large() makes it one of large pages that means the same on both. What cannot be the same is in
the tests at the end.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pykmm
from pykmm.machine import RunResult, page_size, run_host
from pykmm.plugin import get_plugin_manager
from pykmm.tape import OPCODES, MapsLine, Tape
from pykmm_ext.engine import host

pytestmark = pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
PAGE = 4096
PAGES = 12
BASE = 0x7f12_3456_7000     # with large pages, less the part below them
PRIVATE, FIXED, ANONYMOUS, NOREPLACE = 0x02, 0x10, 0x20, 0x100000
STRATEGIES = ("mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount")
#: The other arches, each under another strategy; x86 is under all.
ELSEWHERE = (("x86-5level", "spf"), ("x86-paravirt", "spf-2021"), ("ppc64-4k", "per_vma_lock"), ("ppc64", "spf"),
             ("ppc64", "per_vma_lock-refcount"))
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
FEWER = settings(OPTIONS, max_examples=max(1, EXAMPLES // 4))


def large_length(length: int, size: int) -> int:
    """As many pages of `size` bytes, less what was missing from the last page: that kernel rounds it up, and ours."""
    return -(-length // PAGE) * size - -length % PAGE if length < 1 << 32 else length


def large_address(address: int, size: int) -> int:
    """The same place of that page, counted from the nearer end of it: what is aligned for neither stays so."""
    first, offset = divmod(address - BASE, PAGE)
    return (BASE & -size) + first * size + offset + (size - PAGE if offset > PAGE // 2 else 0)


def large(program: Program, size: int) -> Program:
    """The program in pages of `size` bytes, of which each is treated as a whole: then 4 KiB pages are as good."""
    if size == PAGE:
        return program
    made: Program = []
    for name, number, address, *rest in program:
        address = large_address(address, size)
        if name in ("mmap", "munmap", "mprotect", "touch", "madvise"):
            rest[0] = large_length(rest[0], size)
        elif name == "mremap":
            rest[:2] = (large_length(length, size) for length in rest[:2])
            rest[3] = large_address(rest[3], size)
        made.append((name, number, address, *rest))
    return made


def write_tape(program: Program, size: int) -> tuple[Tape, list[int]]:
    """Two streams, every operation after the one before it; then what is left, page by page."""
    base = BASE & -size
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
        made.append(tape.final.mincore(base + number * size, size))
    for number in range(PAGES):
        made.append(tape.final.load(base + number * size, size))
    return tape, made


def on_linux(program: Program, size: int) -> tuple[list[Outcome], list[MapsLine], list[bool]]:
    """What it answers, its maps, and of each of our pages: is there any of it?"""
    tape, made = write_tape(program, size)
    compiled = tape.program()
    base, parts = BASE & -size, size // PAGE
    result = host.run(compiled, timeout=60, timing=False, pagemap=[(0, base, PAGES * parts)])
    place = {int(op): i for i, op in enumerate(compiled.order)}
    outcomes: list[Outcome] = []
    for op in made:
        i = place[op]
        code = {0: "", 1: "MAPERR", 2: "ACCERR"}[int(result.si_code[i])]
        data = result.loads.get(i, b"")
        if tape.ops["op"][op] == OPCODES["MINCORE"]:        # a byte for each of its pages
            data = bytes(max(data[at:at + parts]) for at in range(0, len(data), parts))
        outcomes.append((int(result.errno[i]), code, int(result.fault_addr[i]), data))
    maps = [MapsLine(line.start, line.end, line.perms) for line in result.maps[0]]
    words = result.pagemap[0, base].tolist()
    return outcomes, maps, [any(word >> 63 for word in words[n * parts:(n + 1) * parts]) for n in range(PAGES)]


def on_pykmm(machine: pykmm.Machine, program: Program) -> tuple[list[Outcome], list[MapsLine], list[bool]]:
    mm, size = machine.mm(), machine.page_size
    base = BASE & -size
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

    final = [("mincore", 0, base + n * size, size) for n in range(PAGES)]
    final += [("load", 0, base + n * size, size) for n in range(PAGES)]
    try:
        for name, cpu, *arguments in [*program, *final]:
            try:
                outcomes.append((0, "", 0, call(name, cpu, arguments)))
            except OSError as error:
                outcomes.append((error.errno or 0, "", 0, b""))
            except pykmm.SegmentationFault as fault:
                outcomes.append((14, fault.code, fault.address, b""))
        maps = [MapsLine(vma.start, vma.end, vma.perms) for vma in mm.vmas]
        present = [bool(word >> 63) for word in mm.pagemap(base, PAGES)]
        machine.validate()
    finally:
        mm.exit()
    return outcomes, maps, present


@pytest.fixture(scope="module", params=STRATEGIES)
def machine(request: pytest.FixtureRequest) -> Iterator[pykmm.Machine]:
    with pykmm.Machine(strategy=request.param, cpus=2, memory="64M") as made:
        yield made


@pytest.fixture(scope="module", params=ELSEWHERE, ids=" ".join)
def other(request: pytest.FixtureRequest) -> Iterator[pykmm.Machine]:
    arch, strategy = request.param
    with pykmm.Machine(arch, strategy, cpus=2, memory=(64 << 20) // PAGE * page_size(arch)) as made:
        yield made


def compare(machine: pykmm.Machine, program: Program) -> None:
    program = large(program, machine.page_size)
    linux, simulated = on_linux(program, machine.page_size), on_pykmm(machine, program)
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


@FEWER
@given(wide)
@example([("mmap", 0, BASE, 3 * PAGE, 3, FIXED), ("touch", 0, BASE, 3 * PAGE, "write"),
          ("mprotect", 0, BASE + PAGE, 1, 0), ("load", 1, BASE + PAGE, 4), ("munmap", 1, BASE + 0x800, PAGE),
          ("store", 1, BASE + PAGE - 2, b"1234"), ("munmap", 1, BASE, 0x1001)])
def test_every_arch(other: pykmm.Machine, program: Program) -> None:
    compare(other, program)


@OPTIONS
@given(basic)
def test_the_native_engine(machine: pykmm.Machine, program: Program) -> None:
    compare_native(machine, program)


@FEWER
@given(basic)
def test_the_native_engine_on_every_arch(other: pykmm.Machine, program: Program) -> None:
    compare_native(other, program)


def compare_native(machine: pykmm.Machine, program: Program) -> None:
    tape, _ = write_tape(large(program, machine.page_size), machine.page_size)
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
    compare_truncation(machine, program)


@FEWER
@given(file_operations)
def test_truncation_on_every_arch(other: pykmm.Machine, program: list[tuple[Any, ...]]) -> None:
    compare_truncation(other, program)


def compare_truncation(machine: pykmm.Machine, program: list[tuple[Any, ...]]) -> None:
    """A file mapped shared and private, cut and grown again; loads come back with what Linux has there.

    A store behind the end of the file in its last page is left out: whether it shows after the file has grown again is
    up to the file system. Of large pages only the last 4 KiB are written, and are where the file ends, if it does not
    end with a page: only then has the running kernel as much of the page as ours.
    """
    unit = machine.page_size

    def place(at: int) -> int:
        return at // PAGE * unit + (unit - PAGE + at % PAGE if at % PAGE else 0)

    tape = Tape()
    tape.file("f", data=b"".join(bytes([65 + n]) * unit for n in range(FILE_PAGES)))
    streams = [tape.thread(), tape.thread()]
    where = [streams[0].mmap(FILE_PAGES * unit, shared=True, file="f"), streams[0].mmap(FILE_PAGES * unit, file="f")]
    last, size = where[1].op, FILE_PAGES * unit
    for name, number, *arguments in program:
        writer = streams[number]
        if name == "truncate":
            size = place(arguments[0])
            op = writer.truncate("f", size)
        elif name == "store":
            private, at, data = arguments
            at = at // PAGE * unit + unit - PAGE + at % PAGE
            if at < size < at + len(data) or (at // unit == size // unit and at >= size):
                continue
            op = writer.store(where[private] + at, data)
        elif name == "load":
            op = writer.load(where[arguments[0]] + arguments[1] // PAGE * unit + arguments[1] % PAGE, 1)
        else:
            op = writer.munmap(where[arguments[0]] + arguments[1] * unit, unit)
        tape.edges.append((last, op))
        last = op
    ends = [tape.final.load(base + n * unit, unit) for base in where for n in range(FILE_PAGES)]
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


# ---- what a program sees of the size of a page ---------------------------------------------------

ALL_ARCHES = get_plugin_manager().arches.names()
UNIT = 0x10000      # whole pages of every arch
EINVAL = errno.EINVAL


def run_both(arch: str, tape: Tape) -> tuple[RunResult, RunResult]:
    with pykmm.Machine(arch, cpus=1, memory=(64 << 20) // PAGE * page_size(arch)) as machine:
        simulated = machine.run(tape)
        machine.validate()
    return simulated, run_host(tape)


def ends(result: RunResult, first: int) -> list[tuple[int, int, str]]:
    """Mappings of the window: start and end in it, permissions."""
    return [(line.start - first, line.end - first, line.perms) for line in result.maps[0]
            if first <= line.start < first + 16 * UNIT]


@pytest.mark.parametrize("arch", ALL_ARCHES)
def test_addresses_that_are_no_pages(arch: str) -> None:
    """The start of a range must be the start of a page: with 64 KiB pages much is EINVAL that 4 KiB pages allow."""
    tape = Tape()
    tape.file("f", size=4 * UNIT)
    t = tape.thread()
    first = BASE & -UNIT
    t.mmap(4 * UNIT, addr=first, flags=FIXED)
    inside = first + PAGE
    strict = [
        t.mprotect(inside, PAGE, "r"), t.madvise(inside, PAGE, "DONTNEED"), t.mincore(inside, PAGE),
        t.msync(inside, PAGE, "MS_ASYNC"), t.mbind(inside, PAGE), t.mremap(inside, PAGE, PAGE).op,
        t.mmap(PAGE, addr=first + 8 * UNIT + PAGE, flags=FIXED).op,
        t.mmap(PAGE, addr=first + 10 * UNIT, flags=FIXED, file="f", offset=PAGE).op, t.munmap(inside, PAGE)]
    lax = [t.mlock(first + 2 * UNIT + 5, 1), t.munlock(first + 2 * UNIT + 5, 1)]
    odd = [t.munmap(first + 1, PAGE), t.mprotect(first + 0x800, PAGE, "r")]
    simulated, linux = run_both(arch, tape)
    assert {int(linux.errnos[op]) for op in (*strict, *lax)} == {0}
    assert {int(linux.errnos[op]) for op in odd} == {EINVAL}
    small = page_size(arch) == PAGE
    assert {int(simulated.errnos[op]) for op in strict} == {0 if small else EINVAL}
    assert {int(simulated.errnos[op]) for op in lax} == {0}
    assert {int(simulated.errnos[op]) for op in odd} == {EINVAL}
    if small:
        assert ends(simulated, first) == ends(linux, first)
    else:
        assert ends(simulated, first) == [(0, 4 * UNIT, "rw-p")]


@pytest.mark.parametrize("arch", ALL_ARCHES)
def test_lengths_that_are_no_pages(arch: str) -> None:
    """The end of a range is rounded up, and contents go with pages: as on Linux, in the pages of the arch."""
    page = page_size(arch)
    tape = Tape()
    tape.file("f", data=b"f" * (PAGE + 1))
    t = tape.thread()
    first = BASE & -UNIT
    t.mmap(3, addr=first, flags=FIXED)                              # a page
    t.mmap(4 * UNIT, addr=first + 2 * UNIT, flags=FIXED)
    t.store(first + 2 * UNIT, b"1")
    t.store(first + 2 * UNIT + PAGE, b"2")
    t.madvise(first + 2 * UNIT, 1, "DONTNEED")                      # the second goes too, where it is in that page
    t.mprotect(first + 4 * UNIT, 1, "r")
    t.munmap(first + 5 * UNIT, 1)
    t.mmap(UNIT, addr=first + 8 * UNIT, flags=FIXED, file="f", prot="r")
    inside = t.load(first + 8 * UNIT + PAGE, 2)
    beyond = t.load(first + 8 * UNIT + 2 * PAGE, 1)                 # the last page of the file, or behind it
    data = t.load(first + 2 * UNIT, PAGE + 1)
    vector = t.mincore(first + 2 * UNIT, UNIT)
    simulated, linux = run_both(arch, tape)
    small = page == PAGE
    assert (int(linux.errnos[inside]), int(simulated.errnos[inside])) == (0, 0)
    assert (int(linux.errnos[beyond]), int(simulated.errnos[beyond])) == (errno.EFAULT, errno.EFAULT if small else 0)
    assert int(linux.errnos[vector]) == int(simulated.errnos[vector]) == 0
    assert ends(simulated, first) == [
        (0, page, "rw-p"), (2 * UNIT, 4 * UNIT, "rw-p"), (4 * UNIT, 4 * UNIT + page, "r--p"),
        *([(4 * UNIT + page, 5 * UNIT, "rw-p")] if small else []),
        *([(5 * UNIT + page, 6 * UNIT, "rw-p")] if small else []), (8 * UNIT, 9 * UNIT, "r--p")]
    if small:
        assert ends(simulated, first) == ends(linux, first)
    with pykmm.Machine(arch, cpus=1, memory=(64 << 20) // PAGE * page) as machine:
        for op, bytes_there in ((data, b"\0" * PAGE + (b"2" if small else b"\0")), (inside, b"f\0")):
            tape.ops["data"][op] = tape.blob(bytes_there)
        assert not machine.run(tape).mismatches
    mismatches = run_host(tape).mismatches
    assert bool(mismatches) == (not small), mismatches


@pytest.mark.parametrize("arch", ALL_ARCHES)
def test_the_end_of_the_heap(arch: str) -> None:
    """brk() takes any byte; the mapping has whole pages, of which a smaller break gives back those behind it."""
    page = page_size(arch)
    with pykmm.Machine(arch, cpus=1, memory=(64 << 20) // PAGE * page) as machine:
        mm = machine.mm()
        start = mm.brk(0)
        for size, pages in ((1, 1), (page, 1), (page + 1, 2), (3 * page, 3), (3 * page - 1, 3), (2 * page, 2), (0, 0)):
            assert mm.brk(start + size) == start + size
            assert sum(vma.end - vma.start for vma in mm.vmas) == pages * page, size
        assert mm.mincore(mm.mmap(0, 3 * page, 3, PRIVATE | ANONYMOUS), 2 * page + 1) == bytes(3)
        mm.exit()
