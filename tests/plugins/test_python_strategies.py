# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python that do what compiled ones do: the conformance kit, and what it says of one point left out."""
from __future__ import annotations

import pytest
from python_strategies import (
    PythonGup,
    PythonGupFork,
    PythonGupOpen,
    PythonRefcount,
    PythonRefcountUnchecked,
    PythonSpf,
    PythonSpfUnchecked,
)

import pykmm
import pykmm.testing

ARCHES = ("x86", "ppc64")


class TestSpf(pykmm.testing.StrategyConformance):
    """Speculative faults."""

    strategy = PythonSpf
    arches = ARCHES
    effort = "quick"


class TestGup(pykmm.testing.StrategyConformance):
    """Pins without a lock."""

    strategy = PythonGup
    arches = ARCHES
    effort = "quick"


class TestRefcount(pykmm.testing.StrategyConformance):
    """A reference count per VMA."""

    strategy = PythonRefcount
    arches = ARCHES
    effort = "quick"


@pytest.mark.parametrize("arch", ["x86", "ppc64"])
@pytest.mark.parametrize(("strategy", "kinds"), [
    (PythonSpfUnchecked, {"assertion", "use-after-free", "broken-structure", "stale-tlb", "leak", "wrong-value"}),
    (PythonGupOpen, {"use-after-free", "pinned-page"}),
    (PythonGupFork, {"wrong-value"}),
    (PythonRefcountUnchecked, {"assertion", "use-after-free", "broken-structure"}),
])
def test_one_point_left_out(strategy: type[pykmm.PythonStrategy], kinds: set[str], arch: str) -> None:
    report = pykmm.testing.check_conformance(strategy, arch, effort="quick", only=("interface", "basics", "catalogue"))
    assert report["basics"].ok, str(report)     # alone, nothing is wrong with it
    reports = [failure.check for failure in report["catalogue"].failures if failure.check is not None]
    assert reports
    for one in reports:
        assert one.violations[0].kind in kinds, str(one)
        assert one.replay().kind == one.violations[0].kind
