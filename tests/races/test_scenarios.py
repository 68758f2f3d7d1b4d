# SPDX-License-Identifier: GPL-2.0-only
"""Every built-in scenario on the check engine: the bug is found as what it is, and the fix holds."""
from __future__ import annotations

import pytest

import pykmm
from pykmm.checking.scenario import Scenario, get
from pykmm.plugin import get_plugin_manager

#: Searches that take minutes to their bound: so many executions of them here, all of them in ``pykmm check all``.
LONG = {"spf-dontneed-dontneed-fault": 20_000}
SCENARIOS = [get(name) for name in get_plugin_manager().scenarios.names()]
BUGGY = [scenario for scenario in SCENARIOS if scenario.buggy is not None and scenario.shown]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_fix_holds(scenario: Scenario) -> None:
    report = pykmm.check(scenario, max_executions=LONG.get(scenario.name, 0))
    assert report.ok, str(report)
    if scenario.name in LONG:
        assert report.executions
    else:
        assert report.complete, str(report)


@pytest.mark.parametrize(("scenario", "strategy"), [
    pytest.param(scenario, config.strategy, id=f"{scenario.name}-{config.strategy}")
    for scenario in SCENARIOS for config in scenario.others if "munmap=" in config.strategy])
def test_munmap_as_a_reader(scenario: Scenario, strategy: str) -> None:
    """Strategies whose munmap() holds mmap_sem to its end by default, told not to."""
    report = pykmm.check(scenario, strategy=strategy)
    assert report.ok, str(report)
    assert report.complete, str(report)


@pytest.mark.parametrize("scenario", BUGGY, ids=lambda scenario: scenario.name)
def test_the_bug_is_found(scenario: Scenario) -> None:
    report = pykmm.check(scenario, variant="buggy")
    assert report.violations
    assert report.violations[0].kind in scenario.expected, str(report)
    trace = report.replay(report.violations[0])
    assert trace.kind == report.violations[0].kind
