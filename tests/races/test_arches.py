# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue on other arches than the one that a scenario was written on: above all ppc64, with weak memory."""
from __future__ import annotations

import pytest

import pykmm
from pykmm.checking.scenario import Scenario, get
from pykmm.plugin import get_plugin_manager
from pykmm_plugins.scenarios import races, speculative

SCENARIOS = [scenario for scenario in (*races.SCENARIOS, *speculative.SCENARIOS) if scenario.fixed.preemptions is None]
#: On a machine whose flushes wait for nobody's IRQs this one cannot happen.
IMMUNE = {"R1-ptl-spin"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_fix_holds_under_weak_memory(scenario: Scenario) -> None:
    report = pykmm.check(scenario, arch="ppc64")
    assert report.memory_model == "power"
    assert report.ok, str(report)
    assert report.complete, str(report)


@pytest.mark.parametrize("scenario", [scenario for scenario in races.SCENARIOS if scenario.buggy], ids=lambda s: s.name)
def test_the_bug_is_found_under_weak_memory(scenario: Scenario) -> None:
    report = pykmm.check(scenario, variant="buggy", arch="ppc64", minimised=False)
    if scenario.name in IMMUNE:
        assert report.ok and report.complete
    else:
        assert report.violations
        assert report.violations[0].kind in scenario.expected, str(report)


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
