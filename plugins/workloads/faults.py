# SPDX-License-Identifier: GPL-2.0-only
"""Workloads of page faults alone: pft, multi-fault, and faults beside a thread that maps and unmaps."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm import workload
from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm.tape_builder import Address
from pykmm.workload import MAPPERS, PAGE, beside_mapper, count, finish, page_bytes, register, start, whole_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str

#: By access, and whether the mapper writes: its turns for each page that is touched.
_PAIRS = {("read", False): 1, ("write", False): 2, ("read", True): 1 / 8, ("write", True): 1 / 2}


def _areas(tape: Tape, threads: int, length: int, separate: bool, page: int) -> list[Address]:
    """Per thread an area of `length`: parts of one VMA, or VMAs that never merge. No two share a page table."""
    table = workload.table_pages(page) * page
    room = (length + table - 1) // table * table + table
    if separate:                # every second one is executable as well: what differs in permissions does not merge
        found = [tape.setup.mmap(room + table, "rw" + "x" * (number % 2)) for number in range(threads)]
        return [area + table for area in found]
    whole = tape.setup.mmap(room * threads + table)
    return [whole + table + number * room for number in range(threads)]


def pft(*, threads: Number = 1, size: Number = "64M", page: Number = PAGE) -> Tape:
    """Page fault test: one anonymous mapping, of which every thread writes its own part, page by page, once.

    ``size`` is the part of one thread. simplified: threads only, no huge pages, no NUMA placement.
    """
    unit, number = page_bytes(page), count(threads, "threads", most=4096)
    length = whole_pages(size, unit)
    tape = Tape()
    whole = tape.setup.mmap(length * number)
    for i, thread in enumerate(start(tape, number)):
        thread.touch(whole + i * length, length, "write")
    return finish(tape, "faults", [length // unit] * number, length * number)


def multi_fault(*, threads: Number = 1, size: Number = "2M", stride: Number = "8M", iterations: Number = 8,
                vma: str = "one", page: Number = PAGE) -> Tape:
    """multi-fault-all of 2010: rounds of parallel write faults, between barriers; then one thread gives all pages back.

    One mapping of 8 MB a thread, of which each thread writes the first 2 MB (so no two share a table of 2 MB) and the
    first thread calls MADV_DONTNEED for all. ``vma=separate`` is multi-fault-all-split: a mapping for each thread,
    which do not merge. simplified: a number of rounds instead of 60 seconds, so that the rate counts instead of the
    faults of a minute.
    """
    unit, number = page_bytes(page), count(threads, "threads", most=4096)
    length, step = whole_pages(size, unit), whole_pages(stride, unit, "stride")
    turns = count(iterations, "iterations")
    if step < length:
        raise ValueError(f"stride must be at least size ({length} bytes), not {step}")
    tape = Tape()
    if vma == "separate":
        areas = [tape.setup.mmap(step, "rw" + "x" * (i % 2)) for i in range(number)]
    else:
        whole = tape.setup.mmap(step * number)
        areas = [whole + i * step for i in range(number)]
    streams = start(tape, number)
    given_back = -1
    for _ in range(turns):
        touched = []
        for stream, area in zip(streams, areas, strict=True):
            touched.append(stream.touch(area, length, "write"))
            if given_back >= 0 and stream is not streams[0]:
                tape.edges.append((given_back, touched[-1]))
        for i, area in enumerate(areas):
            given_back = streams[0].madvise(area, length, "DONTNEED")
            if i == 0:
                tape.edges += [(touch, given_back) for touch in touched[1:]]
    return finish(tape, "faults", [turns * (length // unit)] * number, length * number)


def faults(*, threads: Number = 1, size: Number = "16M", access: str = "write", vma: str = "shared", mapper: str = "no",
           pairs: Number = 0, page: Number = PAGE) -> Tape:
    """Faults of threads that have nothing in common but the address space: pykmm's own.

    Every thread touches its own area once, page by page, with ``access=write`` (a page each) or ``access=read`` (the
    zero page). The areas are parts of one VMA (``vma=shared``) or VMAs of their own (``vma=separate``); no two share a
    page table. ``mapper`` adds a thread that maps and unmaps 16 pages all the time, and writes to them in between with
    ``mapper=write``; it is not counted, and makes ``pairs`` mmap and munmap calls (0: as many as last about as long as
    the faults do, beside the slowest strategy).
    """
    unit, number = page_bytes(page), count(threads, "threads", most=4095)
    length = whole_pages(size, unit)
    pages = length // unit
    calls = count(pairs, "pairs", least=0) or max(1, int(pages * _PAIRS[access, mapper == "write"]))
    tape = Tape()
    areas = _areas(tape, number, length, vma == "separate", unit)
    streams = [tape.thread() for _ in areas]
    mapped = beside_mapper(tape, streams, mapper, calls, unit)
    for thread, area in zip(streams, areas, strict=True):
        thread.touch(area, length, access)
    counts = [pages] * number + [0] * (mapper != "no")
    resident = (length if access == "write" else length // 512) * number + mapped
    return finish(tape, "faults", counts, resident)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register ``pft``, ``multi-fault`` and ``faults``."""
    register(registry, "pft", pft, "page fault test: threads write their parts of one mapping")
    register(registry, "multi-fault", multi_fault, "parallel write faults between barriers, then MADV_DONTNEED",
             {"vma": ("one", "separate")})
    register(registry, "faults", faults, "read or write faults in one VMA or several, alone or beside a mapper",
             {"access": ("write", "read"), "vma": ("shared", "separate"), "mapper": MAPPERS})
