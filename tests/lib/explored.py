# SPDX-License-Identifier: GPL-2.0-only
"""What an exploration must say of a program that is correct, and of one that is not."""
from pykmm.checking.explore import explore


def outcomes(program, memory_model="sc", **options):
    """The outcomes of a program that is correct, having seen every schedule."""
    report = explore(program, memory_model=memory_model, **options)
    assert report.ok, str(report)
    assert report.complete
    return set(report.outcomes)


def violation(program, kind, memory_model="sc", **options):
    """What a program that is wrong does; replaying it gives the same again."""
    report = explore(program, memory_model=memory_model, **options)
    assert not report.ok and not report.outcomes.keys() - {None}
    found = report.violations[0]
    assert found.kind == kind, str(report)
    assert report.replay().text() == found.trace.text()
    return found
