# SPDX-License-Identifier: GPL-2.0-only
"""What a strategy's counters are about, by place and by name: the same for tables and the conformance kit."""
from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ERRORS", "OTHER_PREFIXES", "CounterRoles", "counter_roles"]

#: The first ones are attempts, successes and faults retried under mmap_sem, whatever their names.
FIRST_COUNTERS = 3
#: Faults that ended with an error without being retried.
ERRORS = "errors"
#: Counters that say nothing about faults: of pins, of walks of page tables that others wait for, and of anything else.
OTHER_PREFIXES = ("gup_", "walks_", "stat_")


class CounterRoles(NamedTuple):
    """The names of a strategy's counters, by what they are about."""

    first: tuple[str, ...]      #: attempts, successes, retried (fewer where a strategy counts less)
    errors: str | None          #: the one of faults that were errors
    reasons: tuple[str, ...]    #: why faults were retried: they sum up to `retried`
    other: tuple[str, ...]      #: not about faults


def counter_roles(names: Iterable[str]) -> CounterRoles:
    """`names` in the order of the strategy's table."""
    names = tuple(names)
    rest = names[FIRST_COUNTERS:]
    return CounterRoles(
        names[:FIRST_COUNTERS], ERRORS if ERRORS in rest else None,
        tuple(name for name in rest if name != ERRORS and not name.startswith(OTHER_PREFIXES)),
        tuple(name for name in rest if name.startswith(OTHER_PREFIXES)))
