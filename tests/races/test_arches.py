# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue on other arches than the one that a scenario was written on: above all ppc64, with weak memory."""
from __future__ import annotations

from dataclasses import replace

import pytest

import pykmm
from pykmm.checking.scenario import Scenario, get
from pykmm.plugin import get_plugin_manager
from pykmm_plugins.scenarios import races

SCENARIOS = [get(name) for name in get_plugin_manager().scenarios.names()]
BUGGY = [scenario for scenario in SCENARIOS if scenario.buggy is not None and scenario.shown]
#: Executions of each search here; ``pykmm check all --arch ppc64`` has no such limit.
LIMIT = 5000
#: Those that take more on ppc64; every other fixed variant is exhausted here.
LARGE = frozenset({
    "spf-dontneed-dontneed-fault", "spf-2021-file-truncate",
    "spf-2021-file-truncate-paravirt", "spf-2021-cow-truncate",
    "spf-2021-cow-truncate-paravirt", "spf-2021-fault-around-truncate",
    "R14-anon-vma-early", "R14-anon-vma-early-refcount",
    "per-vma-refcount-munmap-mmap-fault", "per-vma-refcount-recycle",
    "per-vma-refcount-uncounted-munmap-mmap-fault", "per-vma-refcount-uncounted-mremap-fault",
    "per-vma-refcount-uncounted-recycle", "per-vma-refcount-uncounted-recycle-exit",
})
OTHERS = ("x86", "x86-5level", "x86-paravirt", "ppc64-4k")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_fix_holds_under_weak_memory(scenario: Scenario) -> None:
    """Exhausted, but for the few that are known to be larger than the limit."""
    report = pykmm.check(scenario, arch="ppc64", memory_model="power", max_executions=LIMIT)
    assert report.ok, str(report)
    if scenario.name in LARGE:
        assert report.executions + report.blocked >= LIMIT, f"no longer large: {report}"
    else:
        assert report.complete, str(report)


@pytest.mark.parametrize("scenario", BUGGY, ids=lambda scenario: scenario.name)
def test_the_bug_is_found_under_weak_memory(scenario: Scenario) -> None:
    show(scenario, "ppc64")


@pytest.mark.parametrize("arch", OTHERS)
def test_bugs_are_found_where_they_can_happen(arch: str) -> None:
    for scenario in BUGGY:
        show(scenario, arch)


def show(scenario: Scenario, arch: str) -> None:
    """The buggy variant is found, or it is clean under every schedule, on an arch that lacks what the bug needs."""
    report = pykmm.check(scenario, variant="buggy", arch=arch, minimised=False)
    if scenario.lacks(arch):
        assert report.ok and report.complete, str(report)
    else:
        assert report.violations, (scenario.name, arch)
        assert report.violations[0].kind in scenario.expected, str(report)


def test_needs() -> None:
    found = {arch: {scenario.name for scenario in BUGGY if scenario.lacks(arch)} for arch in (*OTHERS, "ppc64")}
    assert {"R1-ptl-spin", "spf-2021-ptl-spin"} == found["ppc64"] - {"spf-2021-ptl-spin-paravirt"} == (
        found["ppc64-4k"] - {"spf-2021-ptl-spin-paravirt"})
    assert {"R4-irqs-off-walk", "R17-walk-counter", "R20-detached-table", "per-vma-bulk-unlock"} <= found["x86"]
    assert found["x86"] == found["x86-5level"]
    assert found["x86-paravirt"] == {"spf-2021-ptl-spin", "R17-walk-counter-atomic", "per-vma-bulk-unlock"}
    assert not get("R17-walk-counter-atomic").lacks("x86-paravirt", "power")
    assert not any(scenario.lacks() for scenario in BUGGY)
    with pytest.raises(ValueError, match="unknown needs luck; known: flush-ipi"):
        replace(get("R1-ptl-spin"), needs=frozenset({"luck"}))


@pytest.mark.parametrize("arch", ["x86-5level", "ppc64-4k"])
@pytest.mark.parametrize("name", ["R5-vma-freed-at-once", "R10-collapse", "spf-munmap-faults", "spf-fork-cow"])
def test_a_few_elsewhere(name: str, arch: str) -> None:
    report = pykmm.check(name, arch=arch)
    assert report.ok and report.complete, str(report)


def test_walks_with_irqs_off_are_not_enough_where_nobody_is_interrupted() -> None:
    """R4 without its fix: on x86 the flush waits for the walk, on ppc64 it does not."""
    assert pykmm.check("R4-irqs-off-walk", variant="buggy", arch="x86", minimised=False).ok
    report = pykmm.check("R4-irqs-off-walk", variant="buggy", arch="ppc64", minimised=False)
    assert report.violations[0].kind == "use-after-free"


def test_a_scenario_without_a_page_is_for_small_pages() -> None:
    scenario = Scenario("small", "no page", lambda: races.munmap_fault(4096), get("spf-munmap-fault").fixed)
    assert scenario.tape(4096) == races.munmap_fault(4096)
    with pytest.raises(ValueError, match="written for pages of 4096 bytes, not 65536"):
        pykmm.check(scenario, arch="ppc64")


def test_every_scenario_is_for_every_page() -> None:
    for name in get_plugin_manager().scenarios.names():
        scenario = get(name)
        assert scenario.tape(65536) != scenario.tape(4096) == scenario.tape(), name
