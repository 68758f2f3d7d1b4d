# SPDX-License-Identifier: GPL-2.0-only
"""Speculative page faults: RFC v5 of 2017, corrected."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._spf import OPTIONS, SPF


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``spf``."""
    registry.add("spf", SPF, "speculative faults without mmap_sem: SRCU + mm_seq + vm_sequence (RFC v5, corrected)",
                 options=OPTIONS)
