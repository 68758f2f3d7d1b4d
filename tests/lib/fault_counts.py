# SPDX-License-Identifier: GPL-2.0-only
"""What a call adds to the counters of a strategy."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pykmm_ext.binding import Machine


def counted(m: Machine, call: Callable[[], Any], raises: type[Exception] | None = None) -> dict[str, int]:
    """What `call()` adds to each counter but "attempts", without those that stay the same."""
    before = m.counters
    if raises is None:
        call()
    else:
        with pytest.raises(raises):
            call()
    after = m.counters
    return {name: after[name] - before[name] for name in after if after[name] != before[name] and name != "attempts"}


def aborted(reason: str) -> dict[str, int]:
    """One fault given up for `reason`, and resolved under mmap_sem."""
    return {"retried": 1, reason: 1}


def check_speculative_sums(m: Machine) -> None:
    """Every attempt is a success or has one reason; every one with a reason was resolved under mmap_sem."""
    attempts, successes, retried, *reasons = m.counters.values()
    assert attempts == successes + sum(reasons)
    assert retried == sum(reasons) == m.vmstat["fault_mmap_sem"]
