# SPDX-License-Identifier: GPL-2.0-only
"""Pins without mmap_sem: get_user_pages_fast() and the monitoring of lockless page-table walks."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._lockless_gup import OPTIONS, LocklessGup


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``lockless_gup`` and its options."""
    registry.add("lockless_gup", LocklessGup, "pins (get_user_pages_fast) without mmap_sem; faults under it",
                 options=OPTIONS)
