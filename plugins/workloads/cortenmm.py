# SPDX-License-Identifier: GPL-2.0-only
"""The five microbenchmarks of the CortenMM paper (SOSP 2025): mmap, mmap-PF, PF, unmap-virt and unmap.

Each thread makes a number of requests, each on a chunk of 16 KB, four pages (PF: a page). With ``contention=low`` the
chunks of each thread lie together in page tables of its own; with ``contention=high`` the chunks of one range are
dealt out to the threads at random, so that neighbours belong to different threads and page tables are shared. The
figure is requests per second.

simplified: the random order comes from ``seed`` and is part of the tape; a run is one pass over the chunks, after which
nothing is repeated.
"""
from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm.tape_builder import AddressLike
from pykmm.workload import PAGE, count, finish, page_bytes, register, start, table_pages

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Number = int | str
#: Where MAP_FIXED requests begin: far from where mmap() puts anything by itself.
BASE = 0x1_0000_0000


def _chunks(threads: int, requests: int, pages: int, contention: str, seed: int,
            table: int) -> tuple[int, list[list[int]]]:
    """Pages of the whole range, and the page offsets of each thread's requests; a page table maps `table` pages."""
    if contention == "low":
        each = (requests * pages + table - 1) // table * table
        return each * threads, [[thread * each + i * pages for i in range(requests)] for thread in range(threads)]
    places = [i * pages for i in range(threads * requests)]
    random.Random(seed).shuffle(places)
    return threads * requests * pages, [places[thread::threads] for thread in range(threads)]


def _build(kind: str, threads: Number, requests: Number, pages: Number, contention: str, seed: Number,
           page: Number) -> Tape:
    number, calls = count(threads, "threads", most=4096), count(requests, "requests", most=1 << 20)
    each = count(pages, "pages", most=1 << 16)
    unit = page_bytes(page)
    whole, chunks = _chunks(number, calls, each, contention, count(seed, "seed", 0, 1 << 32), table_pages(unit))
    length = each * unit
    tape = Tape()
    base: AddressLike = BASE
    if kind in ("PF", "unmap-virt", "unmap"):
        base = tape.setup.mmap(whole * unit)
    if kind == "unmap":
        for mine in chunks:
            for place in mine:
                tape.setup.touch(base + place * unit, length, "write")
    for thread, mine in zip(start(tape, number), chunks, strict=True):
        for place in mine:
            at = base + place * unit
            if kind in ("mmap", "mmap-PF"):
                thread.mmap(length, fixed=at)
            if kind in ("mmap-PF", "PF"):
                thread.touch(at, length, "write")
            if kind in ("unmap-virt", "unmap"):
                thread.munmap(at, length)
    touched = unit if kind in ("mmap", "unmap-virt") else length * calls * number
    return finish(tape, "requests", [calls] * number, touched + whole * 8)


def mmap(*, threads: Number = 1, requests: Number = 512, pages: Number = 4, contention: str = "low",
         seed: Number = 1, page: Number = PAGE) -> Tape:
    """A request maps a chunk of its range (MAP_FIXED, so that the place is the benchmark's choice)."""
    return _build("mmap", threads, requests, pages, contention, seed, page)


def mmap_pf(*, threads: Number = 1, requests: Number = 512, pages: Number = 4, contention: str = "low",
            seed: Number = 1, page: Number = PAGE) -> Tape:
    """A request maps a chunk and writes its pages."""
    return _build("mmap-PF", threads, requests, pages, contention, seed, page)


def pf(*, threads: Number = 1, requests: Number = 4096, pages: Number = 1, contention: str = "low",
       seed: Number = 1, page: Number = PAGE) -> Tape:
    """A request writes a page of a range that is mapped as a whole, and takes a page fault."""
    return _build("PF", threads, requests, pages, contention, seed, page)


def unmap_virt(*, threads: Number = 1, requests: Number = 512, pages: Number = 4, contention: str = "low",
               seed: Number = 1, page: Number = PAGE) -> Tape:
    """A request unmaps a chunk of a range that is mapped as a whole, and that nobody has touched."""
    return _build("unmap-virt", threads, requests, pages, contention, seed, page)


def unmap(*, threads: Number = 1, requests: Number = 512, pages: Number = 4, contention: str = "low",
          seed: Number = 1, page: Number = PAGE) -> Tape:
    """A request unmaps a chunk of a range whose pages are all there."""
    return _build("unmap", threads, requests, pages, contention, seed, page)


@hookimpl
def pykmm_register_workloads(registry: Registry) -> None:
    """Register the five as ``cortenmm-…``."""
    for name, factory, description in (
            ("cortenmm-mmap", mmap, "CortenMM: map 16K chunks"),
            ("cortenmm-mmap-PF", mmap_pf, "CortenMM: map 16K chunks and write them"),
            ("cortenmm-PF", pf, "CortenMM: page faults in a mapped range"),
            ("cortenmm-unmap-virt", unmap_virt, "CortenMM: unmap 16K chunks without pages"),
            ("cortenmm-unmap", unmap, "CortenMM: unmap 16K chunks with their pages")):
        register(registry, name, factory, description, {"contention": ("low", "high")})
