# SPDX-License-Identifier: GPL-2.0-only
"""plugins/workloads: every workload on the native, host and check engines, and what each of them consists of."""
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pykmm
from pykmm.machine import memory_needed, run_host
from pykmm.plugin import get_plugin_manager
from pykmm.tape import ACCESS, OPCODE_NAMES, OPCODES, MapsLine
from pykmm.workload import make
from pykmm_ext.engine import host

PAGE = 4096
#: Small, for two threads, where the differences between strategies are but milliseconds. name -> parameters, and those
#: for the check engine: as few operations as the race between them has.
SMALL = {
    "page_fault1": ("size=64K,iterations=2", "size=4K"),
    "page_fault2": ("size=64K,iterations=2", "size=4K"),
    "page_fault3": ("size=64K,iterations=2", "size=4K"),
    "mmap1": ("iterations=20", "iterations=1"),
    "mmap2": ("iterations=20", "iterations=1"),
    "brk1": ("iterations=20", "iterations=1"),
    "tlb_flush1": ("size=32K,iterations=2", "size=4K"),
    "malloc1": ("iterations=20", "iterations=1"),
    "ebizzy": ("flags=-mTRp,records=20", "flags=-mTRp -n 2 -s 4096,records=1"),
    "pft": ("size=64K", "size=4K"),
    "multi-fault": ("size=32K,stride=64K,iterations=3", "size=4K,stride=4K,iterations=1"),
    "faults": ("size=64K,mapper=yes", "size=4K"),
    "cortenmm-mmap": ("requests=10", "requests=1"),
    "cortenmm-mmap-PF": ("requests=10,contention=high", "requests=1,pages=1"),
    "cortenmm-PF": ("requests=20,contention=high", "requests=1"),
    "cortenmm-unmap-virt": ("requests=10", "requests=1"),
    "cortenmm-unmap": ("requests=10,contention=high", "requests=1"),
    "mtest06": ("iterations=20", "iterations=1,reads=1"),
    "gup_test": ("size=32K,pages=3,iterations=3,mapper=write", "size=4K,iterations=1"),
}
NAMES = [entry.name for entry in get_plugin_manager().workloads if entry.origin.startswith("workloads.")]
VARIANTS = [f"{name}[{SMALL[name][0]}]" for name in NAMES] + [
    "page_fault1[size=64K,mode=processes]", "page_fault2[size=64K,mode=processes]",
    "mmap1[iterations=9,mode=processes]", "brk1[iterations=9,mode=processes]",
    "tlb_flush1[size=16K,mode=processes]", "faults[size=64K,access=read]",
    "faults[size=64K,vma=separate]", "faults[size=64K,mapper=write]", "gup_test[size=32K,area=separate,access=read]",
    "multi-fault[size=32K,stride=64K,vma=separate]", "ebizzy[flags=-mT,records=3]",
    "ebizzy[flags=-M,records=3]", "ebizzy[flags=-P,records=3]", "ebizzy[flags=-mz -s 16384 -n 3,records=3]",
]


def simulated(tape: pykmm.Tape, strategy: str = "spf") -> pykmm.RunResult:
    with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory=memory_needed(tape)) as machine:
        result = machine.run(tape)
        machine.validate()
    return result


def shape(lines: list[MapsLine]) -> list[tuple[int, str, str]]:
    """Lengths, permissions and files of what is mapped, in any order: the host engine chooses other addresses.

    Writable neighbours that differ in nothing count as one: whether they merged depends on who gave them an anon_vma.
    """
    found: list[MapsLine] = []
    for line in lines:
        if found and "w" in line.perms and (found[-1].end, found[-1].perms, found[-1].name) == (
                line.start, line.perms, line.name):
            line = MapsLine(found.pop().start, line.end, line.perms, line.offset, name=line.name)
        found.append(line)
    return sorted((line.end - line.start, line.perms, "" if line.name == "[heap]" else line.name) for line in found)


def test_every_workload_has_small_parameters() -> None:
    assert sorted(NAMES) == sorted(SMALL)


@pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
@pytest.mark.parametrize("text", VARIANTS)
def test_native_agrees_with_the_host(text: str) -> None:
    tape = make(text, 2)
    mine, linux = simulated(tape), run_host(tape)
    assert mine.mismatch_count == linux.mismatch_count == 0, mine.mismatches + linux.mismatches
    for result in (mine, linux):
        assert result.work_seconds > 0
        assert result.rate == pytest.approx(tape.work.total / result.work_seconds)
    if text.startswith("mtest06"):          # a reader finds the file mapped or not: that is what it is about
        assert set(np.unique(np.concatenate([mine.errnos, linux.errnos])).tolist()) <= {0, 14}
        assert not mine.errnos[tape.ops["op"] != OPCODES["LOAD"]].any()
        return
    assert not mine.errnos.any()
    assert not linux.errnos.any()
    shapes = [{mm: shape(lines) for mm, lines in result.maps.items()} for result in (mine, linux)]
    if "-P" in text:        # the host engine leaves the last hole, the kernel's own choice does not: only how much
        shapes = [{perms: sum(n for lines in maps.values() for n, its, _ in lines if its == perms) for perms in
                   ("rw-p", "---p")} for maps in shapes]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_on_the_check_engine(name: str) -> None:
    report = pykmm.check(make(f"{name}[{SMALL[name][1]}]", 2), strategy="spf", max_executions=300)
    assert report.ok, str(report)
    assert report.executions


@pytest.mark.parametrize("name", NAMES)
def test_is_the_same_every_time(name: str) -> None:
    text = f"{name}[{SMALL[name][0]}]"
    assert make(text, 2) == make(text, 2)
    factory = get_plugin_manager().workloads.get(name)
    assert factory.__doc__
    assert len(factory.__doc__.split()) > 5


@pytest.mark.parametrize(("text", "faults", "unit"), [
    ("page_fault1[size=64K,iterations=3]", 48, "faults"), ("page_fault2[size=64K]", 16, "faults"),
    ("page_fault3[size=64K]", 16, "faults"), ("mmap1[iterations=7]", 7, "iterations"),
    ("brk1[iterations=7]", 14, "iterations"), ("tlb_flush1[size=32K]", 8, "iterations"),
    ("malloc1[iterations=5]", 5, "iterations"), ("pft[size=64K]", 16, "faults"),
    ("multi-fault[size=32K,iterations=2]", 16, "faults"), ("faults[size=64K,mapper=yes]", 16, "faults"),
    ("faults[size=64K,mapper=yes,pairs=1]", 16, "faults"), ("gup_test[size=32K,pages=3,iterations=4]", 32, "pages"),
    ("ebizzy[records=9]", 9, "records"), ("cortenmm-PF[requests=5]", 5, "requests"),
])
def test_counts(text: str, faults: int, unit: str) -> None:
    """Per thread; faults that are counted are those that are taken."""
    tape = make(text, 2)
    assert tape.work.unit == unit
    assert [count for count in tape.work.counts if count] == [faults, faults]
    if unit == "faults":
        assert simulated(tape, "mmap_sem").faults == 2 * faults


def kinds(tape: pykmm.Tape, thread: int) -> Counter[str]:
    ops = tape.ops[tape.ops["thread"] == thread]
    return Counter(OPCODE_NAMES[int(op)].lower() for op in ops["op"] if op != OPCODES["NOP"])


def test_processes_have_address_spaces_of_their_own() -> None:
    tape = make("page_fault1[mode=processes,size=16K]", 3)
    assert tape.mms == 4
    assert len({int(mm) for mm in tape.ops["mm"][tape.ops["phase"] == 1]}) == 3
    assert make("page_fault1[mode=threads,size=16K]", 3).mms == 1


def test_tlb_flush1_gives_every_page_back() -> None:
    tape = make("tlb_flush1[size=16K,iterations=2]", 1)
    assert kinds(tape, 0) == {"mmap": 2, "munmap": 2, "touch": 16, "madvise": 8}


def test_a_mapper_outlasts_the_faults() -> None:
    tape = make("faults[size=1M,mapper=yes]", 1)
    assert tape.work.counts == (256, 0)
    assert kinds(tape, len(tape.threads) - 1) == {"mmap": 512, "munmap": 512}
    assert kinds(make("faults[size=1M,mapper=yes,pairs=3]", 1), 2)["mmap"] == 3


def test_low_contention_shares_no_page_table() -> None:
    tables = []
    for contention in ("low", "high"):
        ops = make(f"cortenmm-mmap[requests=64,contention={contention}]", 2).ops
        maps = ops[ops["op"] == OPCODES["MMAP"]]
        used = [set((maps["addr"][maps["thread"] == thread] >> np.uint64(21)).tolist()) for thread in (0, 1)]
        tables.append(used[0] & used[1])
        assert len(np.unique(maps["addr"])) == len(maps) == 128
    assert not tables[0]
    assert tables[1]


@pytest.mark.parametrize(("text", "message"), [
    ("ebizzy[flags=-x]", "known flags"), ("ebizzy[flags=-m -M]", "exclude"), ("ebizzy[flags=-l]", "changes nothing"),
    ("ebizzy[flags=-n none]", "-n must be a number"), ("ebizzy[flags=-S 2,records=3]", "-S and records="),
    ("ebizzy[flags=fast]", "flags only"), ("ebizzy[flags=-t 2,threads=3]", "-t and threads="),
    ("mtest06[threads=1]", "threads must be 2"), ("multi-fault[stride=4K]", "stride must be at least"),
    ("page_fault1[size=0]", "size must be at least"), ("malloc1[size=1M]", "size must be at least"),
    ("mmap1[mode=fibers]", "unknown mode"), ("mmap1[iterations=many]", "iterations must be a number"),
    ("mmap1[threads=0]", "threads must be 1"), ("gup_test[pages=0]", "pages must be 1"), ("faults[mapper=x]", "mapper"),
    ("gup_test[area=own]", "area"),
])
def test_bad_parameters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(text)


@pytest.mark.parametrize(("area", "apart"), [("shared", 0), ("separate", 8 * 4096)])
def test_gup_test_pins_so_many_pages_at_a_call(area: str, apart: int) -> None:
    """Each thread pins all of its area, three pages at a time, and gives all of it back; four rounds."""
    ops = make(f"gup_test[size=32K,pages=3,iterations=4,area={area}]", 2).ops
    starts = []
    for thread in (1, 2):          # 0 is the setup
        own = ops[ops["thread"] == thread]
        for op in ("PIN", "UNPIN"):
            assert own[own["op"] == OPCODES[op]]["len"].tolist() == [3 * 4096, 3 * 4096, 2 * 4096] * 4
        starts.append(int(own[own["op"] == OPCODES["PIN"]]["addr"][0]))
    assert starts[1] - starts[0] == apart


@pytest.mark.parametrize("name", NAMES)
def test_larger_pages(name: str) -> None:
    """With pages of 64 KB every length and address is a multiple of them, but for what a program asks for in bytes."""
    ops = make(f"{name}[{SMALL[name][0]}]", 2, 1 << 16).ops
    known = np.isin(ops["op"], [OPCODES[op] for op in ("MMAP", "MUNMAP", "MPROTECT", "MADVISE")])
    assert not (ops["addr"][known & (ops["addr_ref"] < 0)] % np.uint64(1 << 16)).any()
    if name != "ebizzy":        # bytes, as the original has them
        assert not (ops["len"][known] % np.uint64(1 << 16)).any()
    assert make("page_fault1[size=1M]", 1, 1 << 16).work.counts == (16,)
    with pytest.raises(ValueError, match="page must be a power of two"):
        make("mmap1[page=5K]")


@pytest.mark.parametrize("arch", get_plugin_manager().arches.names())
def test_every_strategy_on_every_arch(arch: str) -> None:
    """No operation fails, and as many faults as there are pages, whoever resolves them."""
    strategies = get_plugin_manager().strategies.names()
    names = [name for name in NAMES if name != "mtest06"]
    comparison = pykmm.compare([f"{name}[{SMALL[name][0]}]" for name in names], strategies, ["native"], [arch], cpus=2,
                               warmup=0)
    assert len(comparison.rows) == len(names) * len(strategies)
    for row in comparison.rows:
        assert not row.result.errnos.any(), str(row)
        if row.unit == "faults":
            assert row.faults == row.result.tape.work.total, str(row)


# -- ebizzy beside the recordings of the real one ---------------------------------------------------------

def test_ebizzy_flags() -> None:
    """-R: a record is one page, since the random numbers never move; -p: every second chunk is read-only."""
    tape = make("ebizzy[flags=-mTRp -t 4 -S 1]")
    assert tape.work.counts == (1000,) * 4
    setup = tape.ops[tape.ops["phase"] == 0]
    chunks = setup[(setup["op"] == OPCODES["MMAP"]) & (setup["len"] == 524288)]
    assert len(chunks) == 10
    assert np.count_nonzero((setup["op"] == OPCODES["MPROTECT"]) & (setup["len"] == 524288)) == 5
    work = tape.ops[(tape.ops["phase"] == 1) & (tape.ops["op"] != OPCODES["NOP"])]
    assert set(work["len"].tolist()) == {8}
    assert Counter(work["op"].tolist()) == {OPCODES["MMAP"]: 4000, OPCODES["TOUCH"]: 4000, OPCODES["MUNMAP"]: 4000}
    assert kinds(make("ebizzy[flags=-M,records=5]", 1), 1) == {"touch": 10, "madvise": 5}


@pytest.mark.skipif(not os.environ.get("PYKMM_TRACES"), reason="PYKMM_TRACES names no directory with recordings")
@pytest.mark.parametrize(("name", "flags"), [("ebizzy-mTRp", "-mTRp -t 4"), ("ebizzy-mTt4", "-mTt 4")])
def test_ebizzy_is_what_was_recorded(name: str, flags: str) -> None:
    """The same operations for a record, and the same chunks before the threads start."""
    path = Path(os.environ["PYKMM_TRACES"]) / f"{name}.perf-trace.txt.xz"
    if not path.exists():
        pytest.skip(f"no recording {name}")
    recorded, made = pykmm.Tape.load(path), make(f"ebizzy[flags={flags},records=50]")

    def record(tape: pykmm.Tape, threads: list[int]) -> tuple[set[int], float]:
        """Lengths that threads map, and pages that they write for each of them."""
        ops = tape.ops[np.isin(tape.ops["thread"], threads) & (tape.ops["phase"] == 1)]
        maps = ops[ops["op"] == OPCODES["MMAP"]]
        common = {length for length, number in Counter(maps["len"].tolist()).items() if number > 20}
        touches = ops[(ops["op"] == OPCODES["TOUCH"])]
        pages = np.maximum(1, (touches["len"] + np.uint64(PAGE - 1)) // np.uint64(PAGE)).sum()
        return common, float(pages) / np.count_nonzero(np.isin(maps["len"], list(common)))

    workers = [i for i, thread in enumerate(recorded.threads)
               if np.count_nonzero((recorded.ops["thread"] == i) & (recorded.ops["op"] == OPCODES["MMAP"])) > 40
               and thread.tid != thread.pid]
    assert len(workers) == 4
    lengths, pages = record(recorded, workers)
    own_lengths, own_pages = record(made, [i for i, thread in enumerate(made.threads) if thread.kind == "thread"])
    assert own_lengths == lengths
    assert pages == pytest.approx(own_pages, rel=0.05)
    chunks = [np.count_nonzero((tape.ops["op"] == OPCODES["MMAP"]) & (tape.ops["len"] == 524288)
                               & ~np.isin(tape.ops["thread"], mine) & (tape.ops["thread"] >= 0))
              for tape, mine in ((recorded, workers), (made, [i for i, t in enumerate(made.threads)
                                                                if t.kind == "thread"]))]
    assert chunks == [10, 10]
    assert set(made.ops["access"][made.ops["op"] == OPCODES["TOUCH"]].tolist()) == {ACCESS["write"]}
