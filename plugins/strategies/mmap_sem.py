# SPDX-License-Identifier: GPL-2.0-only
"""The classic strategy: every fault under mmap_sem."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._mmap_sem import OPTIONS, MmapSem


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``mmap_sem``."""
    registry.add("mmap_sem", MmapSem, "every fault under mmap_sem held for reading (Linux 4.12)", options=OPTIONS)
