# SPDX-License-Identifier: GPL-2.0-only
"""pykmm: an executable reference implementation of how Linux handles page faults concurrently.

The public names below are imported at their first use, so that ``import pykmm`` stays cheap.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykmm.checking.checker import check
    from pykmm.checking.explore import explore
    from pykmm.checking.report import CheckReport, Violation
    from pykmm.comparison import Comparison, compare
    from pykmm.errors import (
        BusError,
        InvariantViolation,
        PluginError,
        PykmmError,
        RunError,
        SegmentationFault,
        TapeError,
    )
    from pykmm.hookspecs import hookimpl
    from pykmm.machine import File, Machine, MmStruct, RunResult, Vma
    from pykmm.plugin import Registry, get_plugin_manager
    from pykmm.strategy import PythonStrategy
    from pykmm.tape import Tape

__version__ = "0.1.0"

__all__ = [
    "BusError", "CheckReport", "Comparison", "File", "InvariantViolation", "Machine", "MmStruct", "PluginError",
    "PykmmError", "PythonStrategy", "Registry", "RunError", "RunResult", "SegmentationFault", "Tape", "TapeError",
    "Violation", "Vma", "check", "compare", "explore", "get_plugin_manager", "hookimpl",
]

_WHERE = {
    "checking.checker": ("check",),
    "checking.explore": ("explore",),
    "checking.report": ("CheckReport", "Violation"),
    "comparison": ("Comparison", "compare"),
    "errors": ("BusError", "InvariantViolation", "PluginError", "PykmmError", "RunError", "SegmentationFault",
               "TapeError"),
    "hookspecs": ("hookimpl",),
    "machine": ("File", "Machine", "MmStruct", "RunResult", "Vma"),
    "plugin": ("Registry", "get_plugin_manager"),
    "strategy": ("PythonStrategy",),
    "tape": ("Tape",),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
