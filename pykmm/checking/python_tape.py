# SPDX-License-Identifier: GPL-2.0-only
"""Tapes under a strategy in Python: what the traces of their executions show."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pykmm.checking.explore import PythonLine
from pykmm.checking.symbols import Symbol, callers
from pykmm.checking.tape_check import WatchedTapeCheck
from pykmm.errors import PluginError
from pykmm_ext.pykernel.call import trace_lines

__all__ = ["PythonTapeCheck"]

#: CHECK_PYTHON_LINE of kmm/check.h: no address, but a number of a line.
_LINE = 1 << 63
#: What stands between Python code and the kernel function that it called.
_ADAPTER = ("pykmm_ext.pykernel.", "pykmm_ext.pystrategy")


#: One list of lines at a time: searches of other threads wait with their traces.
_tracing = threading.RLock()


class PythonTapeCheck(WatchedTapeCheck):
    """A TapeCheck whose strategy is a :class:`pykmm.PythonStrategy`."""

    def stuck(self, message: str) -> PluginError:
        """The watchdog's error."""
        return PluginError(message, self.strategy_name)

    @property
    def what_runs(self) -> str:
        """For the watchdog's error."""
        return f"strategy {self.strategy_name!r}: Python code"

    @contextmanager
    def traced(self) -> Iterator[Callable[[list[int]], Sequence[Symbol | PythonLine]]]:
        """Steps of executions inside of the block keep the lines of Python that led to them."""
        lines: list[tuple[str, int, str]] = []
        with _tracing:
            trace_lines(lines)
            try:
                yield lambda frames: _functions(frames, lines)
            finally:
                trace_lines(None)


def _functions(frames: list[int], lines: list[tuple[str, int, str]]) -> list[Symbol | PythonLine]:
    """The line stands where the C functions of the adapter were."""
    numbers = [frame & ~_LINE for frame in frames if frame & _LINE]
    found: list[Symbol | PythonLine] = []
    for symbol in callers([frame for frame in frames if not frame & _LINE]):
        if not symbol.module.startswith(_ADAPTER):
            found.append(symbol)
        elif numbers:
            number = numbers.pop()
            if 0 < number <= len(lines):
                found.append(PythonLine(*lines[number - 1]))
    return found
