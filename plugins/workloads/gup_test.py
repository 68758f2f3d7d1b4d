# SPDX-License-Identifier: GPL-2.0-only
"""gup_test of Linux's selftests (tools/testing/selftests/mm): how fast pages are pinned."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm.workload import MAPPERS, PAGE, beside_mapper, count, finish, page_bytes, register, whole_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str


def gup_test(*, threads: Number = 1, size: Number = "2M", pages: Number = 1, iterations: Number = 16,
             access: str = "write", area: str = "shared", mapper: str = "no", page: Number = PAGE) -> Tape:
    """PIN_FAST_BENCHMARK: pin_user_pages_fast() over ``size`` bytes, ``pages`` at a call (the original's ``-n``), then
    all of it is unpinned; ``iterations`` rounds. The figure is pages pinned per second, the unpinning included.

    The memory is written before. ``access=write`` pins it for a device that writes to it (``-w``). With ``area=shared``
    the threads pin the same pages (``-j``: they write the same reference counts), with ``area=separate`` each has pages
    of its own in one mapping. ``mapper`` adds a thread that maps and unmaps 16 pages, and writes to them with
    ``mapper=write``; it is not counted.

    simplified: a number of rounds for ``-r``, no huge pages, no file; one figure for pinning and unpinning.
    """
    unit, number = page_bytes(page), count(threads, "threads", most=4095)
    length, rounds = whole_pages(size, unit), count(iterations, "iterations")
    total = length // unit
    step = count(pages, "pages", most=1 << 16) * unit
    tape = Tape()
    own = area == "separate"
    whole = tape.setup.mmap(length * (number if own else 1))
    tape.setup.touch(whole, length * (number if own else 1), "write")
    streams = [tape.thread() for _ in range(number)]
    # A turn with its pages written takes as long as some hundred pins of a page.
    turns = max(1, rounds * total // (32 if mapper == "write" else 2))
    mapped = beside_mapper(tape, streams, mapper, turns, unit)
    for i, thread in enumerate(streams):
        start = whole + i * length if own else whole
        parts = [(start + at, min(step, length - at)) for at in range(0, length, step)]
        first = len(tape)
        for address, n in parts:
            thread.pin(address, n, access)
        for address, n in parts:
            thread.unpin(address, n)
        tape.repeat(first, rounds)
    counts = [rounds * total] * number + [0] * (mapper != "no")
    return finish(tape, "pages", counts, length * (number if own else 1) + mapped)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register ``gup_test``."""
    register(registry, "gup_test", gup_test, "gup_test of Linux's selftests: pages are pinned and given back",
             {"access": ("write", "read"), "area": ("shared", "separate"), "mapper": MAPPERS})
