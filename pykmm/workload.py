# SPDX-License-Identifier: GPL-2.0-only
"""Workloads: generated tapes with a count of what they do, and what their plugins share.

A workload is a function whose keyword arguments all have defaults and that returns a :class:`pykmm.Tape` with
``tape.work`` set. A plugin offers it with :func:`register`; its parameters then work like options of a strategy:
``page_fault1[size=64M,iterations=2]``. ``threads`` is the parameter that ``pykmm compare --cpus`` sets, ``page``
(bytes) the one that arches with other pages than 4 KiB set.

A benchmark that counts what it does in a given time becomes a fixed amount of work here, of which the time is taken:
the rate is the same figure, and every engine and strategy does the same operations.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pykmm.errors import PluginError
from pykmm.machine import parse_size

if TYPE_CHECKING:
    from pykmm.plugin import Registry
    from pykmm.tape import OpStream, Tape

__all__ = [
    "MAPPERS", "PAGE", "beside_mapper", "count", "finish", "make", "page_bytes", "parameters", "register", "start",
    "table_pages", "together", "whole_pages",
]

PAGE = 4096
#: What beside_mapper() knows.
MAPPERS = ("no", "yes", "write")
#: Pages that it maps at a time.
MAPPER_PAGES = 16
MODES = ("threads", "processes")
MAX_THREADS = 4096


def register(registry: Registry, name: str, factory: Callable[..., Tape], description: str,
             choices: Mapping[str, tuple[str, ...]] | None = None) -> None:
    """Offer `factory` as `name`. Each parameter of it is an option; ``choices`` has the values of those that have few.

    ValueError: a parameter without a default, or choices of which the default is none.
    """
    choices = dict(choices or {})
    options: dict[str, tuple[str, ...]] = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.default is parameter.empty:
            raise ValueError(f"workload {name!r}: parameter {parameter.name!r} has no default")
        values = choices.pop(parameter.name, ())
        if values and parameter.default not in values:
            raise ValueError(f"workload {name!r}: {parameter.name} {parameter.default!r} is not one of {values}")
        options[parameter.name] = values
    if choices:
        raise ValueError(f"workload {name!r} has no parameter {', '.join(choices)}")
    registry.add(name, factory, description, options=options)


def parameters(factory: Callable[..., Tape]) -> dict[str, Any]:
    """Parameters of a workload and their defaults; none of a callable that does not say what it takes."""
    try:
        found = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {parameter.name: parameter.default for parameter in found if parameter.default is not parameter.empty}


def make(text: str, threads: int | None = None, page: int = PAGE) -> Tape:
    """The tape of "name" or "name[parameter=value,...]", for so many threads and an arch with pages of `page` bytes.

    ValueError: an unknown name, parameter or value; ``threads`` given twice, or to a workload that has none; large
    pages for one that is written for small ones.
    """
    from pykmm.plugin import get_plugin_manager

    workloads = get_plugin_manager().workloads
    entry, options = workloads.parse(text)
    given: dict[str, Any] = dict(options)
    if threads is not None:
        if "threads" in given:
            raise ValueError(f"{text}: threads= and a number of CPUs exclude each other")
        if "threads" not in entry.options:
            raise ValueError(f"workload {entry.name!r} has no threads to vary")
        given["threads"] = threads
    if page != PAGE and "page" not in given:
        if "page" not in entry.options:
            raise ValueError(f"workload {entry.name!r} is written for pages of {PAGE} bytes, not {page}: it has no "
                             "parameter `page`")
        given["page"] = page
    try:
        tape: Tape = workloads.call(entry, given)
    except PluginError as error:
        if isinstance(error.__cause__, ValueError):     # what is wrong with a parameter
            raise ValueError(f"{text}: {error.__cause__}") from None
        raise
    if tape.work is None:
        raise ValueError(f"{text}: a workload says what it counts (pykmm.workload.finish), this one does not")
    tape.source = text
    return tape


# -- what plugins use ----------------------------------------------------------------------------------

def count(value: int | str, name: str, least: int = 1, most: int = 1 << 24) -> int:
    """A number. ValueError names the parameter when it is none, or outside [least, most]."""
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {number}")
    return number


def page_bytes(value: int | str) -> int:
    """The ``page`` parameter: bytes of a page of the arch. ValueError when that is no power of two from 4K to 1M."""
    number = parse_size(value)
    if not PAGE <= number <= 1 << 20 or number & (number - 1):
        raise ValueError(f"page must be a power of two from 4K to 1M, not {value}")
    return number


def table_pages(page: int) -> int:
    """Pages that a table of PTEs maps at most: a frame full of entries of 8 bytes. Some arches have smaller tables."""
    return page // 8


def whole_pages(value: int | str, page: int = PAGE, name: str = "size", least: int = 1) -> int:
    """Bytes, in whole pages. ValueError names the parameter when it is no size, or less than `least`."""
    try:
        number = parse_size(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not least <= number <= 1 << 44:
        raise ValueError(f"{name} must be at least {least} bytes and at most 16T, not {value}")
    return (number + page - 1) & -page


def start(tape: Tape, threads: int | str, mode: str = "threads") -> list[OpStream]:
    """So many threads of one address space, or processes forked from it. All mappings of setup are made before."""
    number = count(threads, "threads", most=MAX_THREADS)
    if mode not in MODES:
        raise ValueError(f"mode is {' or '.join(MODES)}, not {mode!r}")
    streams = [tape.setup.fork() if mode == "processes" else tape.thread() for _ in range(number)]
    return together(tape, streams)


def together(tape: Tape, streams: Sequence[OpStream]) -> list[OpStream]:
    """Let the streams begin their work at the same time: a barrier, made of NOPs that no rate counts."""
    if len(streams) > 1:
        there = [stream.nop() for stream in streams]
        gathered = streams[0].nop()
        tape.edges += [(nop, gathered) for nop in there[1:]]
        for stream in streams[1:]:
            tape.edges.append((gathered, stream.nop()))
    return list(streams)


def beside_mapper(tape: Tape, streams: Sequence[OpStream], mapper: str, turns: int, page: int) -> int:
    """Let the streams begin at the same time, with one more thread that maps 16 pages and unmaps them, `turns` times.

    ``mapper="yes"``: it does nothing else, so it holds mmap_sem for writing most of the time, or waits for it.
    ``mapper="write"``: it writes the pages before it unmaps them, as programs do. ``mapper="no"``: there is none.
    Returns the most bytes that it has in use. ValueError: another word.
    """
    if mapper not in MAPPERS:
        raise ValueError(f"mapper is {', '.join(MAPPERS[:-1])} or {MAPPERS[-1]}, not {mapper!r}")
    if mapper == "no":
        together(tape, streams)
        return 0
    other = tape.thread("mapper")
    together(tape, [*streams, other])
    first = len(tape)
    area = other.mmap(MAPPER_PAGES * page)
    if mapper == "write":
        other.touch(area, MAPPER_PAGES * page, "write")
    other.munmap(area, MAPPER_PAGES * page)
    tape.repeat(first, turns)
    return MAPPER_PAGES * page if mapper == "write" else 0


def finish(tape: Tape, unit: str, counts: Sequence[int], resident: int, races: bool = False) -> Tape:
    """The finished tape: what each thread counts, in the order of the threads; the most bytes in use at one time.

    An operation that fails makes a run no measurement, unless it was expected to (``expect_errno=``). `races`: threads
    access what others unmap or protect; a SIGSEGV is no failure then.
    """
    from pykmm.tape import Work

    tape.work = Work(unit, tuple(counts), resident, races)
    return tape
