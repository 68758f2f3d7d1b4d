# SPDX-License-Identifier: GPL-2.0-only
"""Races of speculative faults that are known from the discussion of the series: each with and without its fix."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm_plugins.scenarios._races import (
    collapse_fault,
    instantiate_tables,
    merge_fault,
    mprotect_fault,
    mprotect_locked,
    munmap_fault,
    rotation,
    spin_on_ptl,
    truncate_split,
    vmacache_wrap,
)

if TYPE_CHECKING:
    from pykmm.plugin import Registry

_V5 = "RFC v5, Speculative page faults, linux-mm, June 2017"
#: The series with everything corrected: what the buggy variants differ from in one point.
FIXED = "spf-rfc5[fixes=all]"


def _rfc5(options: str) -> str:
    return f"spf-rfc5[fixes=all,{options}]"


_GONE = frozenset({"use-after-free", "broken-structure", "leak"})
_EAGER = ("eager-callbacks",)

SCENARIOS = (
    Scenario(
        "R1-ptl-spin", "spinning on the PTL with IRQs off, against a flush under that PTL", spin_on_ptl,
        Config(FIXED), Config(_rfc5("ptl=spin")), frozenset({"deadlock", "lock-order"}), "R1", f"{_V5}: patch 09",
        needs=frozenset({"flush-ipi"})),
    Scenario(
        "R2-i-mmap-order", "vm_sequence and i_mmap_rwsem: __vma_adjust() against truncation", truncate_split,
        Config(_rfc5("seq=plain")), Config(_rfc5("seq=plain"), quirks=("vma-adjust-order",)),
        frozenset({"lock-order"}), "R2",
        f"{_V5}: patch 05"),
    Scenario(
        "R3-instantiate-tables", "a speculative fault makes page tables, against free_pgtables()", instantiate_tables,
        Config(FIXED), Config(_rfc5("tables=alloc")), _GONE, "R3", f"{_V5}: patches 01 and 08"),
    Scenario(
        "R4-irqs-off-walk", "a walk with IRQs off only, where page tables are freed by RCU", munmap_fault,
        Config(FIXED, arch="x86-paravirt", quirks=_EAGER),
        Config(_rfc5("walk=irq"), arch="x86-paravirt", quirks=_EAGER), _GONE, "R4",
        "arch/x86: MMU_GATHER_RCU_TABLE_FREE for paravirtualised flushes", needs=frozenset({"rcu-tables"})),
    Scenario(
        "R5-vma-freed-at-once", "munmap frees the VMA that a lockless lookup holds", munmap_fault,
        Config(FIXED, quirks=_EAGER), Config(_rfc5("free=now")), _GONE, "R5", f"{_V5}: patch 07"),
    Scenario(
        "R6-rbtree-rotation", "a lockless descent against a rotation: the VMA is not found", rotation,
        Config(_rfc5("miss=sigsegv")), Config(_rfc5("miss=sigsegv,mm_seq=once")), frozenset({"assertion"}), "R6",
        f"{_V5}: patch 07"),
    Scenario(
        "R7-mprotect-recheck", "mprotect between the check of the VMA and the new entry", mprotect_fault,
        Config(FIXED), Config(_rfc5("recheck=before")),
        frozenset({"assertion", "broken-structure", "stale-tlb", "wrong-value"}), "R7", f"{_V5}: patches 02, 04, 06"),
    Scenario(
        "R8-late-section-end", "the write section of a merged VMA ends after the VMA was freed", merge_fault,
        Config(FIXED, quirks=_EAGER), Config(FIXED, quirks=(*_EAGER, "vma-adjust-late-end")),
        frozenset({"use-after-free"}), "R8", f"{_V5}: patches 04 and 07"),
    Scenario(
        "R9-alloc-irqs-off", "p4d_alloc() and pud_alloc() with IRQs off", munmap_fault,
        Config(FIXED), Config(_rfc5("tables=posted")), frozenset({"sleep-in-atomic", "leak", "broken-structure"}),
        "R9", f"{_V5}: patch 08"),
    Scenario(
        "R10-collapse", "a pmd that a collapse has emptied taken for one not populated yet", collapse_fault,
        Config(FIXED), Config(_rfc5("pmd=trust")),
        frozenset({"broken-structure", "leak", "use-after-free", "wrong-value", "assertion"}), "R10",
        f"{_V5}: discussion of patch 08"),
    Scenario(
        "R11-mprotect-populate", "mprotect faults pages in inside its own write section", mprotect_locked,
        Config(_rfc5("seq=plain")), Config(_rfc5("seq=plain"), quirks=("mprotect-populate",)),
        frozenset({"lock-order"}), "R11",
        f"{_V5}: patch 06"),
    Scenario(
        "R16-vmacache-wrap", "a VMA cache whose sequence number has wrapped", vmacache_wrap,
        Config("mmap_sem"), Config("mmap_sem", quirks=("vmacache-narrow",)), frozenset({"use-after-free"}), "R16",
        "mm: get rid of vmacache_flush_all() entirely (2018)"),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register R1 to R11 and R16."""
    register(registry, *SCENARIOS)
