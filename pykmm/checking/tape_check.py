# SPDX-License-Identifier: GPL-2.0-only
"""Tapes on the check engine, with a watchdog over the strategy's code."""
from __future__ import annotations

from pykmm.checking.symbols import with_names
from pykmm.errors import PluginError
from pykmm.machine import watchdog_seconds
from pykmm_ext.engine.check_tape import TapeCheck

__all__ = ["WatchedTapeCheck"]


class WatchedTapeCheck(TapeCheck):
    """A TapeCheck that knows how long a strategy may take to its next step.

    ``watchdog``: seconds after which code that has not come to a kernel function ends the search: 10, or less if
    ``PYKMM_WATCHDOG`` says so; 0 = never.
    """

    @property
    def watchdog(self) -> float:
        """Seconds."""
        return min(10.0, watchdog_seconds())

    def stuck(self, message: str) -> PluginError:
        """The watchdog's error."""
        return PluginError(f"strategy {self.strategy_name!r}: {with_names(message)}", self.strategy_name)
