# SPDX-License-Identifier: GPL-2.0-only
"""ebizzy 0.3: threads that search records in copies of memory chunks, which they allocate and free for every record."""
from __future__ import annotations

import getopt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl
from pykmm.tape import OpStream, Tape
from pykmm.tape_builder import Address
from pykmm.workload import PAGE, count, finish, page_bytes, register, start, whole_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str
#: Records a thread for one second of ``-S``.
RECORDS_PER_SECOND = 1000
RECORD = 8                      # sizeof(record_t)
STACK = 8 << 20
HEAP = 64 << 20                 # glibc: HEAP_MAX_SIZE
HEAP_START = 132 << 10          # glibc: the first part of a thread's arena that can be used
_IGNORED = {"-l": "another memcpy", "-v": "more output", "-r": "an option of older versions"}


@dataclass
class _Options:
    always_mmap: bool = False           # -m
    never_mmap: bool = False            # -M
    touch: bool = False                 # -T
    random_size: bool = False           # -R
    permissions: bool = False           # -p
    holes: bool = False                 # -P
    linear: bool = False                # -z
    chunks: int = 10                    # -n
    chunk_size: int = 524288            # -s
    records: int = 0                    # -S
    threads: int = 0                    # -t


def _parse(flags: str) -> _Options:
    try:
        found, rest = getopt.getopt(flags.split(), "TlmMn:pPRs:S:t:vzr:")
    except getopt.GetoptError as error:
        raise ValueError(f"ebizzy: {error}; known flags: -T -m -M -n N -p -P -R -s BYTES -S SECONDS -t N -z") from None
    if rest:
        raise ValueError(f"ebizzy takes flags only, not {rest[0]!r}")
    options = _Options()
    plain = {"-T": "touch", "-m": "always_mmap", "-M": "never_mmap", "-p": "permissions", "-P": "holes",
             "-R": "random_size", "-z": "linear"}
    for flag, value in found:
        if flag in _IGNORED:
            raise ValueError(f"ebizzy {flag} ({_IGNORED[flag]}) changes nothing here: leave it out")
        if flag in plain:
            setattr(options, plain[flag], True)
        elif flag == "-n":
            options.chunks = count(value, "-n", most=60_000)
        elif flag == "-s":
            options.chunk_size = count(value, "-s", RECORD, HEAP // 2)
        elif flag == "-S":
            options.records = count(value, "-S", most=3600) * RECORDS_PER_SECOND
        else:
            options.threads = count(value, "-t", most=4096)
    if options.always_mmap and options.never_mmap:
        raise ValueError("ebizzy: -m and -M exclude each other")
    return options


def _allocate(setup: OpStream, options: _Options, page: int) -> list[Address]:
    """The chunks, written; what keeps them from merging."""
    setup.mmap(options.chunks * RECORD)
    if options.holes:
        setup.mmap(options.chunks * RECORD)
    chunks, holes = [], []
    for _ in range(options.chunks):
        chunks.append(setup.mmap(options.chunk_size))
        if options.holes:
            holes.append(setup.mmap(page))
    for hole in holes:
        setup.munmap(hole, page)
    for number, chunk in enumerate(chunks):
        setup.touch(chunk, options.chunk_size, "write")
        if options.permissions and number % 2 == 0:
            setup.mprotect(chunk, options.chunk_size, "r")
    return chunks


def _record(thread: OpStream, options: _Options, source: Address, copy: Address, length: int) -> None:
    """What happens to the copy between its allocation and its end."""
    if not options.touch:
        thread.touch(source, length, "read")
    thread.touch(copy, length, "write")
    if options.linear and not options.touch:
        thread.touch(copy, length, "read")


def ebizzy(*, flags: str = "-mTRp", threads: Number = 0, records: Number = 0, page: Number = PAGE) -> Tape:
    """ebizzy with its own flags: ``ebizzy[flags=-mTt 4]``. The figure is records per second of all threads.

    A record is: allocate, copy a chunk (``-T``: only touch the pages), search, free. ``-m``: mmap and munmap. ``-M``:
    the thread's malloc arena, which glibc trims at every free (MADV_DONTNEED). Neither: malloc as it comes, mmap for
    the thread's first record, afterwards an arena that is not trimmed since the threshold has adapted. ``-n`` chunks
    (10), ``-s`` their bytes (524288), ``-p`` and ``-P`` keep them from merging (permissions, holes), ``-R`` random
    size, ``-z`` linear search. As in ebizzy 0.3 the random numbers start from state 0 and stay there: every record
    copies chunk 0, and with ``-R`` it is a single page.

    simplified: ``-S`` stands for 1000 records a thread and second (``records=`` sets the number directly), since the
    work is fixed and the time is taken; threads are two, not twice the CPUs, without ``-t`` or ``threads=``.
    """
    unit = page_bytes(page)
    options = _parse(flags)
    if options.threads and count(threads, "threads", 0, 4096):
        raise ValueError("-t and threads= exclude each other")
    number = options.threads or count(threads, "threads", 0, 4096) or 2
    if options.records and count(records, "records", 0):
        raise ValueError("-S and records= exclude each other")
    turns = options.records or count(records, "records", 0) or RECORDS_PER_SECOND
    length = RECORD if options.random_size else options.chunk_size
    tape = Tape()
    chunks = _allocate(tape.setup, options, unit)
    arenas = []
    for _ in range(number):
        stack = tape.setup.mmap(STACK + unit, 0, flags="MAP_STACK")
        tape.setup.mprotect(stack + unit, STACK, "rw")
    if not options.always_mmap:
        grown = (HEAP_START + length + unit - 1) & -unit
        for _ in range(number):
            arena = tape.setup.mmap(HEAP, 0, flags="MAP_NORESERVE")
            tape.setup.mprotect(arena, grown, "rw")
            arenas.append(arena)
    for i, thread in enumerate(start(tape, number)):
        if not options.always_mmap and not options.never_mmap and length >= 128 << 10:
            copy = thread.mmap(length + unit)
            _record(thread, options, chunks[0], copy, length)
            thread.munmap(copy, length + unit)
            left = turns - 1
        else:
            left = turns
        first = len(tape)
        if options.always_mmap:
            copy = thread.mmap(length)
            _record(thread, options, chunks[0], copy, length)
            thread.munmap(copy, length)
        else:
            copy = arenas[i] + unit
            _record(thread, options, chunks[0], copy, length)
            if options.never_mmap and length >= 128 << 10:
                thread.madvise(copy, whole_pages(length, unit), "DONTNEED")
        if left:
            tape.repeat(first, left)
    resident = options.chunks * options.chunk_size + number * (length + HEAP_START)
    return finish(tape, "records", [turns] * number, resident)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register ``ebizzy``."""
    register(registry, "ebizzy", ebizzy, "web server search: allocate, touch and free a copy for every record")
