# SPDX-License-Identifier: GPL-2.0-only
"""will-it-scale's memory tests under their own names.

Each task (a thread, or with ``mode=processes`` a process) does the same work on mappings of its own; the figure is what
all tasks do per second. simplified: a fixed number of iterations instead of a time, after which the tasks need not end
together; files are the tape's own files, with their pages in the page cache; nothing warms up but the comparison's own
warm-up run.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl
from pykmm.tape import OpStream, Tape
from pykmm.workload import MODES, PAGE, count, finish, page_bytes, register, start, whole_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str


def _tasks(mode: str, threads: Number, iterations: Number, body: Callable[[Tape, OpStream, int], None], unit: str,
           per_turn: int, resident: int, files: int = 0) -> Tape:
    """`body` writes one iteration of one task; it counts `per_turn` units."""
    turns = count(iterations, "iterations")
    tape = Tape()
    for number in range(count(threads, "threads", most=4096) if files else 0):
        tape.file(f"willitscale.{number}", size=files)
    streams = start(tape, threads, mode)
    for number, stream in enumerate(streams):
        first = len(tape)
        body(tape, stream, number)
        tape.repeat(first, turns)
    return finish(tape, unit, [turns * per_turn] * len(streams), (resident + files) * len(streams))


def page_fault1(*, mode: str = "threads", threads: Number = 1, size: Number = "128M",
                iterations: Number = 1, page: Number = PAGE) -> Tape:
    """Anonymous memory page fault: mmap of 128 MB, a write to every page, munmap."""
    unit = page_bytes(page)
    length = whole_pages(size, unit)

    def body(tape: Tape, task: OpStream, number: int) -> None:
        area = task.mmap(length)
        task.touch(area, length, "write")
        task.munmap(area, length)

    return _tasks(mode, threads, iterations, body, "faults", length // unit, length)


def _file_faults(mode: str, threads: Number, size: Number, iterations: Number, page: Number,
                 shared: bool) -> Tape:
    unit = page_bytes(page)
    length = whole_pages(size, unit)

    def body(tape: Tape, task: OpStream, number: int) -> None:
        area = task.mmap(length, file=f"willitscale.{number}", shared=shared)
        task.touch(area, length, "write")
        task.munmap(area, length)

    return _tasks(mode, threads, iterations, body, "faults", length // unit, length, length)


def page_fault2(*, mode: str = "threads", threads: Number = 1, size: Number = "128M",
                iterations: Number = 1, page: Number = PAGE) -> Tape:
    """Separate file private mapping page fault: as page_fault1, on a private mapping of a file: every write copies."""
    return _file_faults(mode, threads, size, iterations, page, False)


def page_fault3(*, mode: str = "threads", threads: Number = 1, size: Number = "128M",
                iterations: Number = 1, page: Number = PAGE) -> Tape:
    """Separate file shared mapping page fault: as page_fault1, on a shared mapping of a file."""
    return _file_faults(mode, threads, size, iterations, page, True)


def mmap1(*, mode: str = "threads", threads: Number = 1, size: Number = "128M", iterations: Number = 5000,
          page: Number = PAGE) -> Tape:
    """Anonymous memory mmap and munmap of 128 MB; nothing is touched."""
    unit = page_bytes(page)
    length = whole_pages(size, unit)

    def body(tape: Tape, task: OpStream, number: int) -> None:
        task.munmap(task.mmap(length), length)

    return _tasks(mode, threads, iterations, body, "iterations", 1, unit)


def mmap2(*, mode: str = "threads", threads: Number = 1, size: Number = "128M", iterations: Number = 5000,
          page: Number = PAGE) -> Tape:
    """Separate file mmap and munmap of 128 MB, private; nothing is touched."""
    unit = page_bytes(page)
    length = whole_pages(size, unit)

    def body(tape: Tape, task: OpStream, number: int) -> None:
        task.munmap(task.mmap(length, file=f"willitscale.{number}"), length)

    return _tasks(mode, threads, iterations, body, "iterations", 1, unit, length)


def brk1(*, mode: str = "threads", threads: Number = 1, iterations: Number = 5000,
          page: Number = PAGE) -> Tape:
    """Brk increase and decrease of one page; each of the two counts. Threads share one break, as in the original."""
    unit, turns = page_bytes(page), count(iterations, "iterations")
    tape = Tape()
    heap = tape.setup.brk()
    streams = start(tape, threads, mode)
    for task in streams:
        first = len(tape)
        task.brk(heap + unit)
        task.brk(heap)
        tape.repeat(first, turns)
    return finish(tape, "iterations", [2 * turns] * len(streams), unit * len(streams))


def tlb_flush1(*, mode: str = "threads", threads: Number = 1, size: Number = "2M", iterations: Number = 1,
               page: Number = PAGE) -> Tape:
    """TLB flush of separate file private mapping: every page is written, given back with MADV_DONTNEED, and read.

    simplified: 2 MB of the file instead of 128 MB unless ``size=`` says otherwise, since each page is three operations.
    """
    unit = page_bytes(page)
    length = whole_pages(size, unit)
    turns = count(iterations, "iterations")
    tape = Tape()
    for number in range(count(threads, "threads", most=4096)):
        tape.file(f"willitscale.{number}", size=length)
    streams = start(tape, threads, mode)
    for number, task in enumerate(streams):
        first = len(tape)
        area = task.mmap(length, file=f"willitscale.{number}")
        for at in range(0, length, unit):
            task.touch(area + at, 0, "write")
            task.madvise(area + at, unit, "DONTNEED")
            task.touch(area + at, 0, "read")
        task.munmap(area, length)
        tape.repeat(first, turns)
    return finish(tape, "iterations", [turns * (length // unit)] * len(streams), 3 * length * len(streams))


def malloc1(*, mode: str = "threads", threads: Number = 1, size: Number = "128M", iterations: Number = 3000,
            page: Number = PAGE) -> Tape:
    """Malloc and free of 128 MB, above glibc's largest mmap threshold: mmap, a write to the chunk's header, munmap."""
    unit = page_bytes(page)
    length = whole_pages(size, unit, least=32 << 20) + unit

    def body(tape: Tape, task: OpStream, number: int) -> None:
        area = task.mmap(length)
        task.touch(area, 0, "write")
        task.munmap(area, length)

    return _tasks(mode, threads, iterations, body, "iterations", 1, unit)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register the tests under their names."""
    for factory, description in (
            (page_fault1, "will-it-scale: write every page of 128M of anonymous memory, unmap"),
            (page_fault2, "will-it-scale: the same on a private mapping of a file"),
            (page_fault3, "will-it-scale: the same on a shared mapping of a file"),
            (mmap1, "will-it-scale: map and unmap 128M of anonymous memory"),
            (mmap2, "will-it-scale: map and unmap 128M of a file"),
            (brk1, "will-it-scale: move the break up and down by a page"),
            (tlb_flush1, "will-it-scale: write, MADV_DONTNEED and read each page of a private file mapping"),
            (malloc1, "will-it-scale: malloc and free 128M")):
        register(registry, factory.__name__, factory, description, {"mode": MODES})
