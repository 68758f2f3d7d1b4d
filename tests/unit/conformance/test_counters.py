# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/counters.py, and the checks of counters under every option of the built-in strategies."""
from __future__ import annotations

import itertools

import pytest

import pykmm
from pykmm.conformance.counters import check_counters
from pykmm.conformance.stress import check_stress
from pykmm.conformance.subject import Subject
from pykmm.counters import counter_roles
from pykmm.plugin import BUILT_IN

#: Strategies whose options are all combined: they decide what is counted beside faults.
EVERY = ("lockless_gup", "mmap_sem", "spf")


def combinations(name: str, changed: int) -> list[str]:
    """The strategy with at most so many options that are not the default."""
    options = pykmm.get_plugin_manager().strategies.entry(name).options
    found = []
    for values in itertools.product(*options.values()):
        given = [f"{option}={value}" for option, value in zip(options, values) if value != options[option][0]]
        if len(given) <= changed:
            found.append(f"{name}[{','.join(given)}]" if given else name)
    return found


BUILT_INS = [entry.name for entry in pykmm.get_plugin_manager().strategies if entry.distribution == BUILT_IN]


def test_roles() -> None:
    roles = counter_roles(["attempts", "fine", "retried", "busy", "errors", "gup_fast", "walks_skipped", "stat_spins"])
    assert roles.first == ("attempts", "fine", "retried")
    assert roles.errors == "errors"
    assert roles.reasons == ("busy",)
    assert roles.other == ("gup_fast", "walks_skipped", "stat_spins")
    assert counter_roles(["gup_attempts"]) == (("gup_attempts",), None, (), ())


@pytest.mark.parametrize("name", BUILT_INS)
def test_counters_under_every_option(name: str) -> None:
    """All options, each with each other one; all of them combined where they have to do with counters."""
    tried = combinations(name, 99 if name in EVERY else 2)
    assert len(tried) > 1
    for strategy in tried:
        _, failures = check_counters(Subject(strategy, "x86", effort="quick"))
        assert not failures, f"{strategy}: {failures[0].message}"


@pytest.mark.parametrize("arch", ["x86", "x86-paravirt", "ppc64"])
@pytest.mark.parametrize("options", ["monitor=percpu", "monitor=atomic", "serialize=ipi", "serialize=rcu",
                                     "monitor=percpu,serialize=rcu"])
def test_stress_where_walks_are_counted(options: str, arch: str) -> None:
    _, failures = check_stress(Subject(f"lockless_gup[{options}]", arch, effort="quick"))
    assert not failures, failures[0].message
