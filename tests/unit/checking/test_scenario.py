# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/scenario.py and the built-in scenarios: what they are, and that the fixed ones run natively."""
from __future__ import annotations

import pytest

from pykmm.checking.scenario import KINDS, Config, Scenario, get, register
from pykmm.plugin import Registry, get_plugin_manager
from pykmm.tape import Tape

SCENARIOS = [entry.factory() for entry in get_plugin_manager().scenarios]


def ids(scenario: Scenario) -> str:
    return scenario.name


def run(scenario: Scenario, config: Config, times: int = 3) -> None:
    for _ in range(times):
        with config.machine(scenario.cpus) as machine:
            result = machine.run(scenario.tape())
            assert not result.mismatches
            machine.validate()


def test_every_race_is_there() -> None:
    races = {scenario.race for scenario in SCENARIOS if scenario.race}
    assert races == {f"R{n}" for n in (*range(1, 12), *range(13, 19), 20)}
    # One of each has the race in its name; others are the same race in another strategy.
    assert races == {scenario.name.partition("-")[0] for scenario in SCENARIOS if scenario.name[1:2].isdigit()}
    for scenario in SCENARIOS:
        if scenario.race:
            assert scenario.buggy is not None
            assert scenario.source


@pytest.mark.parametrize("scenario", SCENARIOS, ids=ids)
def test_what_a_scenario_is(scenario: Scenario) -> None:
    assert get(scenario.name) is scenario
    assert scenario.title
    assert "\n" not in scenario.title
    assert 2 <= scenario.cpus <= 4      # the child of a fork counts
    assert scenario.tape() == scenario.tape()
    assert scenario.tape() is not scenario.tape()
    assert scenario.expected <= KINDS
    assert scenario.fixed not in (scenario.buggy, *scenario.others)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=ids)
def test_the_fixed_variant_runs(scenario: Scenario) -> None:
    run(scenario, scenario.fixed)
    for config in scenario.others:
        run(scenario, config, 1)


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.buggy is not None], ids=ids)
def test_the_buggy_variant_is_a_machine(scenario: Scenario) -> None:
    """It may not be run here: a deadlock would be one."""
    assert scenario.buggy is not None
    with scenario.buggy.machine(scenario.cpus) as machine:
        assert machine.strategy == scenario.buggy.strategy
        assert set(machine.quirks) == set(scenario.buggy.quirks)


def test_configurations_say_what_they_are() -> None:
    assert str(Config()) == "spf"
    assert str(Config("mmap_sem", "x86-paravirt", ("eager-callbacks",), "pso")) == (
        "mmap_sem on x86-paravirt with eager-callbacks under pso")
    with pytest.raises(ValueError, match=r"unknown memory model 'arm'; known: sc, tso, pso, power"):
        Config(memory_model="arm")
    with pytest.raises(ValueError, match="must not be negative"):
        Config(preemptions=-1)


def test_a_scenario_is_checked() -> None:
    with pytest.raises(ValueError, match="unknown kinds wrong; known: assertion, "):
        Scenario("x", "", Tape, Config(), Config("mmap_sem"), frozenset({"wrong"}))
    with pytest.raises(ValueError, match="go together"):
        Scenario("x", "", Tape, Config(), Config("mmap_sem"))
    with pytest.raises(ValueError, match="unknown scenario 'x'; 'pykmm list scenarios' shows all "):
        get("x")


def test_registration() -> None:
    registry = Registry("scenario")
    scenario = Scenario("mine", "a title", Tape, Config())
    register(registry, scenario)
    assert registry.make("mine") is scenario
    assert registry.entry("mine").description == "a title"
