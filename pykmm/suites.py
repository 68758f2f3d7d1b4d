# SPDX-License-Identifier: GPL-2.0-only
"""Sets of workloads with a name, for ``pykmm compare --suite``."""
from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """Workloads that answer one question, and the numbers of CPUs for it."""

    workloads: tuple[str, ...]
    cpus: tuple[int, ...]
    description: str


def _faults(mapper: str = "no") -> tuple[str, ...]:
    found = []
    # Beside a mapper longer: a few milliseconds are less than it takes a virtual processor to come back.
    for access, size in (("read", "512M"), ("write", "32M")) if mapper == "no" else (("read", "1G"), ("write", "128M")):
        for vma in ("shared", "separate"):
            options = f"access={access},vma={vma},size={size}"
            found.append(f"faults[{options}]" if mapper == "no" else f"faults[{options},mapper={mapper}]")
    return tuple(found)


def _pins() -> tuple[str, ...]:
    found = []
    for pages in (1, 64):
        for more in ("", ",mapper=write", ",mapper=yes"):
            found.append(f"gup_test[area=separate,pages={pages},iterations={512 if more else 128}{more}]")
    return ("gup_test[iterations=128]", *found)


SUITES = {
    "faults": Suite((*_faults(), "page_fault1[size=16M,iterations=8]", *_faults("write"), *_faults("yes")), (1, 2),
                    "read and write faults in one VMA and in separate ones, alone and beside a mapper"),
    "pins": Suite(_pins(), (1, 2), "pages are pinned and given back, alone and beside a mapper"),
    "will-it-scale": Suite(("page_fault1", "page_fault2", "page_fault3", "mmap1", "mmap2", "brk1", "tlb_flush1",
                            "malloc1"), (1, 2), "will-it-scale's memory tests, threads"),
    "cortenmm": Suite(tuple(f"cortenmm-{name}[contention={contention}]"
                            for name in ("mmap", "mmap-PF", "PF", "unmap-virt", "unmap")
                            for contention in ("low", "high")), (1, 2), "the microbenchmarks of the CortenMM paper"),
}
