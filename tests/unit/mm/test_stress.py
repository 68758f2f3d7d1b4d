# SPDX-License-Identifier: GPL-2.0-only
"""Native threads fault in shared mappings while another maps, unmaps, protects, drops and forks; then everything is
counted."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pykmm_ext.binding import Machine
from pykmm_ext.mm.memory_test import Board, page_info, stress_mutator, stress_worker, validate_contents
from pykmm_plugins.arch._x86 import X86
from pykmm_plugins.strategies._mmap_sem import MmapSem
from pykmm_plugins.strategies._spf import SPF

PAGE = 0x1000
RW = 3
PRIVATE_ANON_FIXED = 0x32
SPECIAL = 1 << 9
STABLE, LOOSE = 0x7000_0000_0000, 0x7000_0100_0000


@pytest.mark.parametrize("strategy", [MmapSem, SPF], ids=["mmap_sem", "spf"])
@pytest.mark.parametrize("backed", [False, True], ids=["anonymous", "file"])
@pytest.mark.parametrize(("workers", "nr_stable", "forks", "drops"), [
    (1, 12, True, False), (2, 12, True, False), (2, 12, False, True), (1, 12, True, True), (2, 300, True, False),
])
def test_faults_against_changes(strategy: Any, workers: int, nr_stable: int, forks: bool, drops: bool,
                               backed: bool) -> None:
    nr_loose = 24
    changes = 40000 if nr_stable < 100 else 4000
    cpus = workers + 1
    with Machine(X86(), strategy(), cpus=cpus, memory=64 << 20) as m:
        mm = m.mm()
        backing = m.file("zeroes", size=nr_loose * PAGE) if backed else None
        mm.mmap(STABLE, nr_stable * PAGE, RW, PRIVATE_ANON_FIXED)
        mm.mmap(LOOSE, nr_loose * PAGE, RW, PRIVATE_ANON_FIXED)
        with ThreadPoolExecutor(cpus) as pool:
            board = Board(workers, nr_stable)
            mutator = pool.submit(stress_mutator, mm, workers, board, STABLE, LOOSE, nr_loose, changes, 7, forks,
                                  backing)
            jobs = [pool.submit(stress_worker, mm, i, board, STABLE, LOOSE, nr_loose, 300000, 11 + i, drops)
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
        cached = {info[0] for info in mapped if info is not None and not info[3] & 0x100 and not info[4] & SPECIAL}
        assert mm.stats["file_rss"] == len(cached)
        assert {info[1:3] for info in anon} == {(1, 1)}
        assert len({info[0] for info in anon}) == len(anon)
        assert len(anon) + mm.stats["nr_ptes"] + len(cached) <= m.vmstat["nr_used_frames"]
        assert m.vmstat["nr_used_frames"] <= len(anon) + mm.stats["nr_ptes"] + (nr_loose if backed else 0)
        counters = m.counters
        if strategy is SPF:
            names = list(counters)
            assert counters["attempts"] == counters["speculative"] + sum(counters[name] for name in names[3:])
            assert counters["retried"] == sum(counters[name] for name in names[3:])
            assert counters["speculative"] > 0
        else:
            assert counters["attempts"] == counters["successes"] + counters["errors"]
        mm.exit()
