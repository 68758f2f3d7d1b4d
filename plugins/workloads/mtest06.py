# SPDX-License-Identifier: GPL-2.0-only
"""LTP's mtest06 (mmap1): one thread maps, writes and unmaps a file; the others read there, mapped or not."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm.workload import PAGE, count, finish, page_bytes, register, together, whole_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str
#: Where the file is mapped every time, so that the readers know where to look.
PLACE = 0x2000_0000_0000


def mtest06(*, threads: Number = 2, size: Number = "4K", iterations: Number = 1000, reads: Number = 8,
            page: Number = PAGE) -> Tape:
    """The race of a mapper against ``threads`` - 1 readers. The figure is turns per second of the mapper.

    A read between map and unmap must find the byte that is written; one that comes after the unmap takes the signal,
    which is fine. A byte of another value counts as a mismatch. Each reader makes ``reads`` reads for every turn of
    the mapper.

    simplified: the file holds the byte from the beginning (the original's readers may find a hole before the first
    write) and is always mapped at one place instead of where mmap() likes; no usleep() between the turns.
    """
    number = count(threads, "threads", 2, 4096)
    unit = page_bytes(page)
    length, turns = whole_pages(size, unit), count(iterations, "iterations")
    looks = count(reads, "reads", most=1024)
    tape = Tape()
    tape.file("ashfile", data=b"a" * length)
    streams = together(tape, [tape.thread("mapper"), *(tape.thread("reader") for _ in range(number - 1))])
    first = len(tape)
    streams[0].mmap(length, shared=True, file="ashfile", fixed=PLACE)
    for at in range(0, length, unit):
        streams[0].store(PLACE + at, b"a")
    streams[0].munmap(PLACE, length)
    tape.repeat(first, turns)
    for reader in streams[1:]:
        first = len(tape)
        for look in range(looks):
            reader.load(PLACE + look * unit % length, 1, expect=b"a")
        tape.repeat(first, turns)
    return finish(tape, "turns", [turns] + [0] * (number - 1), 3 * length, races=True)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register ``mtest06``."""
    register(registry, "mtest06", mtest06, "LTP: a thread maps, writes and unmaps a file that others read")
