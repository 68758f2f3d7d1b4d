# SPDX-License-Identifier: GPL-2.0-only
"""Native threads fault in shared mappings while another maps, unmaps, protects, drops and forks; then everything is
counted."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from arch_under_test import ARCH, PAGE, frames, is_, make_arch

from pykmm import BusError
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import Board, page_info, stress_mutator, stress_worker, validate_contents
from pykmm_plugins.arch._x86 import X86Paravirt
from pykmm_plugins.strategies._mmap_sem import MmapSem
from pykmm_plugins.strategies._per_vma_lock import PerVMALock
from pykmm_plugins.strategies._per_vma_lock_refcount import PerVMALockRefcount
from pykmm_plugins.strategies._spf import SPF
from pykmm_plugins.strategies._spf_2021 import SPF2021
from pykmm_plugins.strategies._spf_rfc5 import SPFRFC5

RW = 3
PRIVATE_ANON_FIXED = 0x32
STABLE = 0x7000_0000_0000
LOOSE = STABLE + 4096 * PAGE


def corrected() -> Any:
    return SPFRFC5(fixes="all")


#: On x86 all of it, x86-paravirt included; on another arch a part, and shorter.
ON = [(make_arch, MmapSem), (make_arch, SPF), (make_arch, corrected), (make_arch, SPF2021), (make_arch, PerVMALock),
      (make_arch, PerVMALockRefcount)]
IDS = ["mmap_sem", "spf", "spf-rfc5", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"]
SHAPES = [(2, 12, True, True), (2, 300, True, False)]
if ARCH == "x86":
    ON += [(X86Paravirt, SPF), (X86Paravirt, SPF2021)]
    IDS += ["spf-paravirt", "spf-2021-paravirt"]
    SHAPES = [(1, 12, True, False), (2, 12, True, False), (2, 12, False, True), (1, 12, True, True),
              (2, 300, True, False)]


@pytest.mark.parametrize(("arch", "strategy"), ON, ids=IDS)
@pytest.mark.parametrize("backed", [False, True], ids=["anonymous", "file"])
@pytest.mark.parametrize(("workers", "nr_stable", "forks", "drops"), SHAPES)
def test_faults_against_changes(arch: Any, strategy: Any, workers: int, nr_stable: int, forks: bool, drops: bool,
                                backed: bool) -> None:
    nr_loose = 24
    changes = 40000 if nr_stable < 100 else 4000
    if strategy is corrected or arch is X86Paravirt:
        changes //= 4
    turns = 300000
    if ARCH != "x86":
        changes, turns = changes // 20, turns // 20
    cpus = workers + 1
    quirks = ("eager-callbacks",) if drops or ARCH != "x86" else ()     # a VMA is reused as early as it may be
    with Machine(arch(), strategy(), cpus=cpus, memory=frames(64 << 20), quirks=quirks) as m:
        mm = m.mm()
        backing = m.file("zeroes", size=nr_loose * PAGE) if backed else None
        mm.mmap(STABLE, nr_stable * PAGE, RW, PRIVATE_ANON_FIXED)
        mm.mmap(LOOSE, nr_loose * PAGE, RW, PRIVATE_ANON_FIXED)
        with ThreadPoolExecutor(cpus) as pool:
            board = Board(workers, nr_stable)
            mutator = pool.submit(stress_mutator, mm, workers, board, STABLE, LOOSE, nr_loose, changes, 7, forks,
                                  backing)
            jobs = [pool.submit(stress_worker, mm, i, board, STABLE, LOOSE, nr_loose, turns, 11 + i, drops)
                    for i in range(workers)]
            assert [job.result()[0] for job in jobs] == [0] * workers
            failed, forked = mutator.result()
        assert failed == 0
        assert (forked > 0) == forks
        m.validate()
        assert validate_contents(m) is None
        # Every frame, reference and rss page is explained by what is mapped.
        mapped = [page_info(mm, base + i * PAGE) for base, n in ((STABLE, nr_stable), (LOOSE, nr_loose))
                  for i in range(n)]
        anon = [info for info in mapped if info is not None and info[3] & 0x100]
        assert mm.stats["anon_rss"] == len(anon)
        cached = {info[0] for info in mapped
                  if info is not None and not info[3] & 0x100 and not is_("special", info[4])}
        assert mm.stats["file_rss"] == len(cached)
        assert {info[1:3] for info in anon} == {(1, 1)}
        assert len({info[0] for info in anon}) == len(anon)
        assert len(anon) + mm.stats["nr_ptes"] + len(cached) <= m.vmstat["nr_used_frames"]
        assert m.vmstat["nr_used_frames"] <= len(anon) + mm.stats["nr_ptes"] + (nr_loose if backed else 0)
        counters = m.counters
        if strategy is not MmapSem:
            names = list(counters)
            assert counters["attempts"] == counters[names[1]] + sum(counters[name] for name in names[3:])
            assert counters["retried"] == sum(counters[name] for name in names[3:] if name != "errors")
            assert counters[names[1]] > 0
        else:
            assert counters["attempts"] == counters["successes"] + counters["errors"]
        mm.exit()


@pytest.mark.parametrize("strategy", [MmapSem, SPF, SPF2021, PerVMALock, PerVMALockRefcount],
                         ids=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def test_faults_and_changes_against_truncation(strategy: Any) -> None:
    """Three address spaces map a file, shared and private; one thread cuts it and lets it grow again."""
    pages, turns = 8, 1500 if ARCH == "x86" else 150
    with Machine(make_arch(), strategy(), cpus=4, memory=frames(64 << 20)) as m:
        f = m.file("f", data=b"f" * (pages * PAGE))

        def user(cpu: int, mm: MmStruct) -> int:
            buses = 0
            for turn in range(turns):
                a = mm.mmap(0, pages * PAGE, RW, 1 + (turn & 1), file=f, cpu=cpu)
                child = mm.fork(cpu=cpu) if turn % 16 == 0 else None
                for page in range(pages):
                    try:
                        mm.store(a + page * PAGE, b"x", cpu=cpu)
                        assert mm.load(a + page * PAGE, 1, cpu=cpu) in (b"x", b"\0", b"f")
                    except BusError:
                        buses += 1
                        beyond.set()
                if turn & 2:
                    mm.mprotect(a, PAGE, 1, cpu=cpu)
                    a = mm.mremap(a, pages * PAGE, (pages + 1) * PAGE, 1, cpu=cpu) if not turn & 6 else a
                mm.munmap(a, (pages + 1) * PAGE, cpu=cpu)
                if child is not None:
                    child.exit()
            return buses

        def cutter() -> None:
            assert beyond.wait(60)
            f.truncate(pages * PAGE, cpu=3)
            for turn in range(turns * 4):
                f.truncate((turn * 5 % (pages + 1)) * PAGE, cpu=3)
                f.truncate(pages * PAGE, cpu=3)

        beyond = threading.Event()
        f.truncate(0)       # and stays so until somebody was there
        with ThreadPoolExecutor(4) as pool:
            spaces = [m.mm() for _ in range(3)]
            jobs = [pool.submit(user, cpu, mm) for cpu, mm in enumerate(spaces)]
            cut = pool.submit(cutter)
            assert sum(job.result() for job in jobs) > 0
            cut.result()
        f.truncate(0)
        m.validate()
        assert validate_contents(m) is None
        for mm in spaces:
            assert mm.stats["anon_rss"] == mm.stats["file_rss"] == 0
            mm.exit()
