# SPDX-License-Identifier: GPL-2.0-only
"""Speculative page faults of 2021: one sequence count per address space, and before and after each decision."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._spf_2021 import OPTIONS, SPF2021


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``spf-2021`` and its options."""
    registry.add("spf-2021", SPF2021, "speculative faults of 2021: one sequence count per mm, a copy of the VMA, RCU",
                 options=OPTIONS)
