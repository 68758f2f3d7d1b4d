# SPDX-License-Identifier: GPL-2.0-only
"""Machine: CPUs, memory, an arch and a fault strategy; and running tapes on it.

The core is :mod:`pykmm_ext.binding`; this module adds the names of plugins, sizes as text and :meth:`Machine.run`.
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykmm.errors import RunError
from pykmm.plugin import get_plugin_manager
from pykmm_ext import binding
from pykmm_ext.arch import Arch
from pykmm_ext.binding import File, MmStruct, Vma
from pykmm_ext.strategy import Strategy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pykmm.tape import MapsLine, Notes, Tape
    from pykmm.tape_program import TapeProgram

__all__ = ["ENGINES", "File", "Machine", "MmStruct", "RunResult", "Vma", "parse_size", "run_host"]

#: Engines that Machine.run() knows.
ENGINES = ("native", "host")
#: Every engine, in a line.
ENGINE_DESCRIPTIONS = {
    "native": "one thread per simulated CPU in this process, wall clock",
    "host": "real system calls and touches on the running kernel, wall clock",
    "check": "virtual CPUs under a controlled scheduler: every interleaving, no time (pykmm check)",
}
#: Seconds without a page fault or a completed operation after which a native run is stopped, and what changes that.
WATCHDOG_SECONDS = 60.0
WATCHDOG_VARIABLE = "PYKMM_WATCHDOG"

#: What limits the memory of a container is seen here.
CGROUP = Path("/sys/fs/cgroup")

_SIZE = re.compile(r"([0-9]+)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_VM_READ, _VM_WRITE, _VM_EXEC, _VM_SHARED = 1, 2, 4, 8


def parse_size(text: str | int) -> int:
    """"256M", "64K", "2T", "1048576" -> bytes (powers of 1024). ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a size must be a string or an integer, not {type(text).__name__}")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: expected a number with K, M, G or T, like 256M")
    return int(match[1]) << _UNITS[(match[2] or "").upper()]


@dataclass
class RunResult:
    """What running a tape gave. Arrays are indexed as ``tape.ops``."""

    engine: str
    strategy: str                           #: "linux" on the host engine
    arch: str
    cpus: int                               #: simulated CPUs (threads of the tape that may run at the same time)
    elapsed: float                          #: seconds from the start barrier to the end of the last operation
    faults: int                             #: page faults taken
    counters: dict[str, int]                #: of the strategy; empty on the host engine
    vmstat: dict[str, int]                  #: of the machine; empty on the host engine
    results: npt.NDArray[np.int64]          #: address, 0 or -errno
    errnos: npt.NDArray[np.int32]           #: 0 = success
    durations: npt.NDArray[np.uint64] | None    #: nanoseconds, where asked for
    maps: dict[int, list[MapsLine]]         #: address space -> its mappings when it ended
    streams: list[float]                    #: seconds per simulated CPU; empty on the host engine
    mismatches: list[str]                   #: first results that differ from recorded or expected ones
    mismatch_count: int
    notes: Notes                            #: what the importer met
    tape: Tape = field(repr=False)
    #: per simulated CPU: when the operations of the threads' phase began and ended, in seconds of one clock, without
    #: the NOPs that it begins with; (0, 0) where there are none
    spans: list[tuple[float, float]] = field(default_factory=list)
    #: why an access failed: 1 = MAPERR, 2 = ACCERR, 3 = SIGBUS, 4 = out of memory; 0x80: other bytes than expected
    codes: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def faults_per_s(self) -> float:
        """Page faults per second of elapsed time."""
        return self.faults / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def work_seconds(self) -> float:
        """Seconds in which the threads did the work that a workload counts, without setup; 0 where none is counted."""
        if self.tape.work is None:
            return 0.0
        spans = [span for span, count in zip(self.spans, self.tape.work.counts, strict=False) if count and span[1]]
        return max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0

    @property
    def rate(self) -> float:
        """What a workload counts (``tape.work.unit``), per second of ``work_seconds``; 0 where none is counted.

        RunError when the work was not done (:meth:`require_success`).
        """
        seconds = self.work_seconds
        if self.tape.work is not None:
            self.require_success()
        return self.tape.work.total / seconds if self.tape.work is not None and seconds > 0 else 0.0

    @property
    def recorded(self) -> dict[str, int]:
        """The recording's own fault counts: "minor", "major"; empty for a tape written by hand."""
        return dict(self.notes.faults)

    def require_success(self) -> None:
        """RunError where this run is no measurement of its tape: strategy, engine, operation and why.

        What counts of a workload is every operation that failed, unless it was expected to (``expect_errno=``). Of
        other tapes it is what ran out of simulated memory: what else fails there is a result, or one of ``mismatches``.
        """
        import numpy as np

        want = np.maximum(self.tape.ops["expect_errno"], 0)
        failed = self.errnos != want
        if self.tape.work is not None and self.tape.work.races and self.codes is not None:
            failed &= ~np.isin(self.codes, [1, 2])
        if self.tape.work is None:
            failed &= _out_of_memory(self.tape, self.errnos, self.codes)
        where = np.flatnonzero(failed)
        if not len(where):
            return
        first = int(where[0])
        more = f"; {len(where):,} operations failed" if len(where) > 1 else ""
        raise RunError(f"{self.tape.source or 'the tape'} under {self.strategy} on {self.engine}: no figure, as "
                       f"{_operation(self.tape, first)} failed: {self._why(first)}{more}")

    def _why(self, i: int) -> str:
        code = 0 if self.codes is None else int(self.codes[i])
        starved = bool(_out_of_memory(self.tape, self.errnos, self.codes)[i])
        if not self.errnos[i]:
            return f"expected {_name(int(self.tape.ops['expect_errno'][i]))}, got success"
        if self.engine != "host" and (starved or self.errnos[i] == errno.ENOMEM):
            return f"{'' if starved else 'ENOMEM, perhaps '}out of simulated memory (--memory or memory= sets it)"
        return _name(int(self.errnos[i])) + (f" ({_CODES[code]})" if code in _CODES else "")

    def maps_diff(self) -> list[str]:
        """Differences from the recorded end maps as unified diff lines; empty = none, or nothing recorded."""
        from pykmm.report import maps_diff

        return maps_diff(self)


class Machine(binding.Machine):
    """A simulated machine; a context manager.

    :param arch: name of an arch backend (``pykmm list``), or an Arch object
    :param strategy: name of a fault strategy, with options as in "spf-rfc5[ptl=spin]"; or a Strategy object
    :param cpus: number of simulated CPUs, 1 to 4096
    :param memory: physical memory, like "256M" or "2T"; reserved, committed as it is used
    :param fault_around: bytes mapped around a read fault of a file; one page = off
    :param quirks: fixes of the mm to do without, by name (:data:`pykmm_ext.binding.QUIRKS`): for the study of races
    """

    def __init__(self, arch: str | Arch = "x86", strategy: str | Strategy = "spf", cpus: int = 2,
                 memory: str | int = "256M", *, fault_around: str | int = "64K",
                 quirks: Iterable[str] = ()) -> None:
        manager = get_plugin_manager()
        made_arch = manager.arches.make(arch) if isinstance(arch, str) else arch
        made_strategy = manager.strategies.make(strategy) if isinstance(strategy, str) else strategy
        for what, made, base in (("arch", made_arch, Arch), ("strategy", made_strategy, Strategy)):
            if isinstance(made, type):
                raise TypeError(f"{what} must be a name or an object; {made.__name__} is a class: give "
                                f"{made.__name__}()")
            if not isinstance(made, base):
                article = "an" if base is Arch else "a"
                raise TypeError(f"{what} must be a name or {article} {base.__name__}, not {made!r}")
        super().__init__(made_arch, made_strategy, cpus, parse_size(memory), parse_size(fault_around), quirks)

    @property
    def arch(self) -> str:
        """Name of the arch backend."""
        return self.arch_object.name

    @property
    def strategy(self) -> str:
        """Name of the fault strategy."""
        return self.strategy_object.name

    def _mm_created(self, mm: MmStruct) -> None:
        get_plugin_manager().hook.pykmm_mm_created(mm=mm)

    def run(self, tape: Tape, engine: str = "native", *, durations: bool = False,
            watchdog: float | None = None) -> RunResult:
        """Run `tape` and return what happened.

        ``engine="native"`` runs every stream of the tape on a simulated CPU of this machine, each on a thread of its
        own; "host" runs the same tape as real system calls on the running kernel, beside this machine.
        ``durations=True`` also times every operation (about 50 ns each). A system call that fails is a result, not
        an error. ``watchdog``: seconds without a page fault or a completed operation after which a native run is
        stopped, 0 = never; the environment variable ``PYKMM_WATCHDOG``, or 60, if not given.

        PluginError: that, and what a strategy does wrong; what a strategy in Python raises comes out of here.
        ValueError: an unknown engine, or more streams than CPUs (the message says how many are needed). TapeError: a
        malformed tape, or one that was recorded with pages of another size.
        """
        from pykmm.tape import Tape

        if not isinstance(tape, Tape):
            raise TypeError(f"run() takes a Tape, not {type(tape).__name__}: {tape!r}")
        if engine == "host":
            return run_host(tape, durations=durations)
        if engine != "native":
            raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        result = _run_native(self, tape, durations, watchdog_seconds() if watchdog is None else watchdog)
        get_plugin_manager().hook.pykmm_report(result=result)
        return result


def page_size(arch: str | Arch) -> int:
    """Bytes in a page of an arch backend, or of the one of that name. ValueError: no such arch."""
    return _Tables(arch).page


def table_span(arch: str | Arch) -> int:
    """Bytes of the address space that a table of PTEs maps on an arch backend, or the one of that name. ValueError."""
    return _Tables(arch).span


def table_frames(arch: str | Arch) -> tuple[int, int]:
    """Frames of an arch's page tables: of those above the PTE tables for all places in use at a time, and of one path
    from the root, without it, to a PTE. ValueError: no such arch."""
    tables = _Tables(arch)
    return tables.upper, tables.path


class _Tables:
    """What the page tables of an arch take: bytes of a page, bytes that a PTE table maps, frames of the tables above
    the PTE tables for the few places of an address space that are in use at a time."""

    def __init__(self, arch: str | Arch) -> None:
        made = get_plugin_manager().arches.make(arch) if isinstance(arch, str) else arch
        geometry: dict[str, Any] = dict(made.geometry())
        self.page: int = 1 << geometry["page_shift"]
        self.span: int = 1 << geometry["level_shift"][1]
        frames: list[int] = [max(1, (8 << bits) // self.page) for bits in geometry["level_bits"]]
        self.leaf = frames[0]
        self.path = sum(frames[:-1])
        self.upper = frames[-1] + 8 * sum(frames[:-1])


def check_pages(tape: Tape, page: int, arch: str) -> None:
    """TapeError where `tape` was recorded on a machine with other pages than the `page` bytes of `arch`.

    What a program did in pages of 4 KiB cannot be done in larger ones: half of its calls would fail with EINVAL.
    """
    from pykmm.errors import TapeError
    from pykmm.tape_layout import PAGE

    if tape.recorded and page != PAGE:
        raise TapeError(f"recorded with pages of {PAGE} bytes, and {arch} has {page}: replay it on an arch with pages "
                        f"of {PAGE} bytes", tape.source or None)


def _frames_needed(program: TapeProgram, arch: str | Arch) -> int:
    """Frames that a run takes at most: pages touched, their page tables, a margin for fault-around."""
    import numpy as np

    from pykmm.tape import OPCODES

    ops = program.ops
    tables = _Tables(arch)
    page = tables.page
    shift = np.uint64(page.bit_length() - 1)
    margin = max((16 << 20) // page, 1024)
    touch = np.isin(ops["op"], [OPCODES[name] for name in ("TOUCH", "LOAD", "STORE", "PIN")])
    if program.tape.work is not None and program.tape.work.resident:
        pages = program.tape.work.resident // page
        # Areas that setup maps may be read only: page tables and no pages.
        setup = np.flatnonzero((ops["op"] == OPCODES["MMAP"]) & (ops["phase"] == 0))
        there = ops[touch & np.isin(ops["addr_ref"], setup)]
        where = there["addr"] ^ (there["addr_ref"].astype(np.uint64) << np.uint64(44))
        read = int(there["len"][np.unique(where, return_index=True)[1]].sum()) if len(there) else 0
        return (pages + pages // 4 + tables.leaf * max(read, program.tape.work.resident) // tables.span
                + tables.upper * program.mms + margin)
    small = touch & (ops["len"] <= page) & (ops["addr_ref"] < 0)
    keys = (ops["addr"][small] >> shift) ^ (ops["mm"][small].astype(np.uint64) << np.uint64(52))
    pages = len(np.unique(keys))
    per_table = np.uint64((tables.span // page).bit_length() - 1)
    needed = tables.leaf * len(np.unique(keys >> per_table)) + tables.upper * program.mms
    # Longer or symbolic ones: the same range touched again takes nothing more.
    rest = ops[touch & ~small]
    other = np.unique(np.stack([rest[name].astype(np.int64) for name in ("addr", "addr_ref", "mm", "len")]), axis=1)
    long = int(np.clip(other[3] >> int(shift), 0, 1 << 30).sum()) + 2 * int(other.shape[1])
    populate = (ops["op"] == OPCODES["MMAP"]) & ((ops["flags"] & (0x8000 | 0x2000)) != 0)
    long += int(np.minimum(ops["len"][populate] >> shift, np.uint64(1 << 30)).sum())
    needed += tables.leaf * (2 * long * page // tables.span + 1)
    return int(pages + pages // 4 + long + 2 * needed + margin)


def memory_needed(tape: Tape, arch: str | Arch = "x86") -> int:
    """Bytes of simulated memory with which `tape` runs on an arch, with room to spare; at most 1 TiB. ValueError: no
    such arch."""
    return min(max(256 << 20, 2 * page_size(arch) * _frames_needed(tape.program(), arch)), 1 << 40)


def available_memory() -> int:
    """Bytes that this process may still commit: what the host has, or its cgroup leaves. 0 = nobody says."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as lines:
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):      # "max" is no number
            most = int((CGROUP / limit).read_text())
            stat = (CGROUP / limit).with_name("memory.stat").read_text()
            cache = dict(line.split() for line in stat.splitlines()).get("inactive_file", "0")
            found.append(max(0, most - int((CGROUP / used).read_text()) + int(cache)))
    return min(found, default=0)


def size_text(size: int) -> str:
    """Bytes for people, as parse_size() reads them, to three digits."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.3g}{unit}" if size < 1000 << shift else f"{size >> shift}{unit}"
    return str(size)


def check_host_memory(program: TapeProgram, arch: str | Arch, most: int | None = None) -> None:
    """MemoryError where a run would commit more memory than the host has left, which would end this process.

    `most`: bytes of the machine, which cannot use more. What it says is what the tape surely uses, without margins.
    """
    work = program.tape.work
    needed = work.resident if work is not None and work.resident else (
        _frames_needed(program, arch) * page_size(arch))
    needed = needed if most is None else min(needed, most)
    there = available_memory()
    if there and needed > there:
        raise MemoryError(f"{program.tape.source or 'the tape'} needs {size_text(needed)} of memory, and the host has "
                          f"{size_text(there)} available: make it smaller")


def closing_execs(program: TapeProgram) -> npt.NDArray[np.uint8]:
    """Per operation: an EXEC after which nobody uses the address space it leaves."""
    import numpy as np

    from pykmm.tape import OPCODES

    ops = program.ops
    closes = np.zeros(len(ops), np.uint8)
    stream = np.searchsorted(program.stream_start.astype(np.int64), np.arange(len(ops)), side="right") - 1
    for i in np.nonzero(ops["op"] == OPCODES["EXEC"])[0].tolist():
        users = np.nonzero(ops["mm"] == ops["mm"][i])[0]
        closes[i] = bool((stream[users] == stream[i]).all() and users.max() == i)
    return closes


def device_numbers(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(":")
    try:
        return int(major, 16), int(minor, 16)
    except ValueError:
        return 0, 0


def _maps_line(start: int, end: int, vm_flags: int, offset: int, major: int, minor: int, ino: int,
               name: str) -> MapsLine:
    from pykmm.tape import MapsLine

    perms = (("r" if vm_flags & _VM_READ else "-") + ("w" if vm_flags & _VM_WRITE else "-")
             + ("x" if vm_flags & _VM_EXEC else "-") + ("s" if vm_flags & _VM_SHARED else "p"))
    return MapsLine(start, end, perms, offset, f"{major:02x}:{minor:02x}", ino, name)


def watchdog_seconds() -> float:
    """``PYKMM_WATCHDOG``, or the default. ValueError for what is no number of seconds."""
    text = os.environ.get(WATCHDOG_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else WATCHDOG_SECONDS
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{WATCHDOG_VARIABLE}={text!r} is no number of seconds (0 = never)") from None
    return seconds


def _run_native(machine: Machine, tape: Tape, durations: bool, watchdog: float) -> RunResult:
    import numpy as np

    from pykmm.tape import OPCODE_NAMES
    from pykmm_ext.engine import native

    check_pages(tape, machine.page_size, machine.arch)
    program = tape.program()
    n = len(program)
    if program.nstreams > machine.cpus:
        raise ValueError(f"the tape needs {program.nstreams} CPUs, this machine has {machine.cpus}: "
                         f"Machine(cpus={program.nstreams})")
    check_host_memory(program, machine.arch_object, machine.memory)
    results = np.zeros(n, np.int64)
    codes = np.zeros(n, np.uint8)
    times = np.zeros(n, np.uint64) if durations else None
    awaited = np.zeros(n, np.uint8)
    awaited[program.stream_start[program.dep_stream.astype(np.int64)].astype(np.int64) + program.dep_pos] = 1
    page = machine.page_size
    # Never more than half of what the host has free: what is beyond it is committed as it is used.
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    commit = min(_frames_needed(program, machine.arch_object) * page, machine.memory, host) // page
    before, counted = machine.vmstat, machine.counters
    elapsed, streams, maps, spans = native.run(
        machine, np.ascontiguousarray(program.ops).view(np.uint8), program.stream_start, program.dep_start,
        program.dep_stream, program.dep_pos, awaited, closing_execs(program), results, codes, times, program.roots,
        program.mms, [(f.name, f.data, f.size, device_numbers(f.dev), f.ino) for f in program.files],
        [blob + b"\0" for blob in program.blobs], [len(blob) for blob in program.blobs], tape.recorded, commit,
        watchdog=watchdog,
        describe=lambda i: f"operation {int(program.order[i])} ({OPCODE_NAMES[int(program.ops['op'][i])].lower()})")
    vmstat = {name: value - before.get(name, 0) if not name.startswith("nr_") else value
              for name, value in machine.vmstat.items()}
    counters = {name: value - counted.get(name, 0) for name, value in machine.counters.items()}
    return _result(
        program, tape, "native", machine.strategy, machine.arch, program.nstreams, elapsed / 1e9, vmstat["pgfault"],
        counters, vmstat, results, codes, times,
        {mm: [_maps_line(*line) for line in lines] for mm, lines in maps.items()}, [t / 1e9 for t in streams],
        [(start / 1e9, end / 1e9) for start, end in spans])


def run_host(tape: Tape, *, durations: bool = False) -> RunResult:
    """Run `tape` as real system calls and touches in forked children on the running kernel.

    Nothing is simulated: this is the baseline. HostEngineError when the run cannot be set up or does not finish.
    """
    import numpy as np

    from pykmm.tape import MapsLine
    from pykmm_ext.engine import host

    program = tape.program()
    check_host_memory(program, "x86")       # for its pages of 4 KiB
    out = host.run(program, timing=durations)
    results = np.where(out.errno != 0, -out.errno.astype(np.int64), out.result)
    codes = np.where(out.signal == 7, 3, np.where(out.signal == 11, out.si_code, 0)).astype(np.uint8)
    maps = {mm: [MapsLine(line.start, line.end, line.perms, line.offset, "00:00", 0, line.name) for line in lines]
            for mm, lines in out.maps.items()}
    result = _result(
        program, tape, "host", "linux", os.uname().machine, program.nstreams, out.elapsed_ns / 1e9,
        int(np.sum(out.minor_faults)) + int(np.sum(out.major_faults)), {}, {}, results, codes,
        out.duration_ns.astype(np.uint64) if out.duration_ns is not None else None, maps, [],
        [(start / 1e9, end / 1e9) for start, end in out.spans])
    for index, data in out.loads.items():
        want = int(program.ops["data"][index])
        if want >= 0 and bytes(data)[:len(program.blobs[want])] != program.blobs[want][:len(bytes(data))]:
            result.mismatch_count += 1
            result.mismatches.append(f"operation {int(program.order[index])}: loaded other bytes than expected")
    get_plugin_manager().hook.pykmm_report(result=result)
    return result


def _result(program: TapeProgram, tape: Tape, engine: str, strategy: str, arch: str, cpus: int, elapsed: float,
            faults: int, counters: dict[str, int], vmstat: dict[str, int], results: npt.NDArray[np.int64],
            codes: npt.NDArray[np.uint8], times: npt.NDArray[np.uint64] | None, maps: dict[int, list[MapsLine]],
            streams: list[float], spans: list[tuple[float, float]]) -> RunResult:
    """Put what an engine gave into the order of the tape and compare it with what was recorded or expected."""
    import numpy as np

    n = len(program)
    order = program.order
    by_tape = np.empty(n, np.int64)
    by_tape[order] = results
    failed = (by_tape < 0) & (by_tape > -4096)
    errnos = np.where(failed, -by_tape, 0).astype(np.int32)
    codes_by_tape = np.empty(n, np.uint8)
    codes_by_tape[order] = codes
    durations = None
    if times is not None:
        durations = np.empty(n, np.uint64)
        durations[order] = times
    count, examples = _mismatches(tape, by_tape, errnos, codes_by_tape)
    return RunResult(
        engine=engine, strategy=strategy, arch=arch, cpus=cpus, elapsed=elapsed, faults=faults, counters=counters,
        vmstat=vmstat, results=by_tape, errnos=errnos, durations=durations, maps=maps, streams=streams,
        mismatches=examples, mismatch_count=count, notes=tape.notes, tape=tape, spans=spans, codes=codes_by_tape)


_ADDRESS = ("MMAP", "MREMAP", "BRK")
_STATUS = ("MUNMAP", "MPROTECT", "MADVISE", "MLOCK", "MUNLOCK", "MLOCKALL", "MUNLOCKALL", "MSYNC", "MBIND", "TRUNCATE")
_OOM = 4
_CODES = {1: "MAPERR", 2: "ACCERR", 3: "SIGBUS", _OOM: "out of memory"}


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "success"


def _operation(tape: Tape, i: int) -> str:
    """Which operation of a tape, in words."""
    from pykmm.tape import OPCODE_NAMES

    op = tape.ops[i]
    line = f", line {int(op['source'])}" if op["source"] else ""
    return f"operation {i}{line}: {OPCODE_NAMES[int(op['op'])].lower()} at {int(op['addr']):#x}"


def _out_of_memory(tape: Tape, errnos: npt.NDArray[np.int32],
                   codes: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.bool_]:
    """Operations that failed for want of memory, whatever else is wrong: ENOMEM of other calls may mean other things
    (mincore() of what is not mapped)."""
    import numpy as np

    from pykmm.tape import OPCODES

    only = np.isin(tape.ops["op"], [OPCODES[name] for name in (
        "TOUCH", "LOAD", "STORE", "PIN", "MAP", "FORK", "EXEC")])
    found: npt.NDArray[np.bool_] = only & (errnos == errno.ENOMEM)
    return found if codes is None else found | ((errnos != 0) & (codes == _OOM))


def _mismatches(tape: Tape, results: npt.NDArray[np.int64], errnos: npt.NDArray[np.int32],
                codes: npt.NDArray[np.uint8], limit: int = 20) -> tuple[int, list[str]]:
    """How many results differ from what was recorded or expected, and a sentence for the first `limit`."""
    import numpy as np

    from pykmm.tape import NO_RESULT, OPCODES

    ops = tape.ops
    want = ops["expect_errno"]
    bad = (want >= 0) & (errnos != want)
    differs = codes == 0x80
    wrong_result = np.zeros(len(ops), bool)
    wrong_status = np.zeros(len(ops), bool)
    broken = np.zeros(len(ops), bool)
    if tape.recorded:
        known = ops["result"] != NO_RESULT
        wrong_result = known & np.isin(ops["op"], [OPCODES[k] for k in _ADDRESS]) & (ops["result"] != results)
        recorded_errno = np.where((ops["result"] < 0) & (ops["result"] > -4096), -ops["result"], 0)
        wrong_status = known & np.isin(ops["op"], [OPCODES[k] for k in _STATUS]) & (recorded_errno != errnos)
        broken = np.isin(ops["op"], [OPCODES[k] for k in ("TOUCH", "MAP", "FORK", "EXEC")]) & (errnos != 0)
    where = np.nonzero(bad | differs | wrong_result | wrong_status | broken)[0]

    def sentence(i: int) -> str:
        op, head = ops[i], _operation(tape, i)
        got = _name(int(errnos[i]))
        if codes[i] in _CODES and errnos[i]:
            got += f" ({_CODES[int(codes[i])]})"
        if bad[i]:
            return f"{head}: expected {_name(int(want[i]))}, got {got}"
        if differs[i]:
            return f"{head}: loaded other bytes than expected"
        if wrong_result[i]:
            recorded = int(op["result"])
            was = _name(-recorded) if -4096 < recorded < 0 else f"{recorded:#x}"
            return f"{head}: recorded {was}, got {got if errnos[i] else hex(int(results[i]))}"
        if wrong_status[i]:
            return f"{head}: recorded {_name(int(recorded_errno[i]))}, got {got}"
        return f"{head}: recorded as done, got {got}"

    return len(where), [sentence(int(i)) for i in where[:limit]]


def check_names(kind: str, names: Iterable[str]) -> list[str]:
    """`names` as a list without repeats. ValueError lists the known ones when one is unknown or none is given."""
    manager = get_plugin_manager()
    registry = {"strategy": manager.strategies, "arch": manager.arches}.get(kind)
    known = list(ENGINES) if registry is None else registry.names()
    found = list(dict.fromkeys(names))
    if not found:
        raise ValueError(f"no {kind} given; known: {', '.join(known)}")
    for name in found:
        if registry is not None:
            registry.parse(name)
        elif name not in known:
            other = f"; {name!r} is the engine of 'pykmm check'" if name in ENGINE_DESCRIPTIONS else ""
            raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}{other}")
    return found


