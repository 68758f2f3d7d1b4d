# SPDX-License-Identifier: GPL-2.0-only
"""Tapes under a strategy in Python: what the traces of their executions show."""
from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pykmm.checking.explore import PythonLine
from pykmm.checking.symbols import Symbol, callers
from pykmm.errors import PluginError
from pykmm.machine import watchdog_seconds
from pykmm_ext.engine.check_tape import TapeCheck
from pykmm_ext.pykernel.call import trace_lines

__all__ = ["PythonTapeCheck", "watched_setup"]

#: CHECK_PYTHON_LINE of kmm/check.h: no address, but a number of a line.
_LINE = 1 << 63
#: What stands between Python code and the kernel function that it called.
_ADAPTER = ("pykmm_ext.pykernel.", "pykmm_ext.pystrategy")


#: One list of lines at a time: searches of other threads wait with their traces.
_tracing = threading.RLock()


class PythonTapeCheck(TapeCheck):
    """A TapeCheck whose strategy is a :class:`pykmm.PythonStrategy`.

    ``watchdog``: seconds after which Python code that has not come to a kernel function ends the search.
    """

    watchdog: float = 10.0

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


class _SetUpTooLongError(BaseException):
    """Ends what the strategy's Python code is at, in the thread that runs a tape's setup."""


@contextmanager
def watched_setup(strategy: str) -> Iterator[None]:
    """The block runs the setup of a tape: PluginError when that takes longer than ``PYKMM_WATCHDOG``, or 60, seconds.

    The setup is no part of the search: there is no schedule in which it could be found to be endless. What sleeps or
    waits outside of Python code is not ended.
    """
    seconds = watchdog_seconds()
    if not seconds:
        yield
        return
    thread = threading.get_ident()
    over = threading.Lock()
    stack: list[str] = []

    def expire() -> None:
        with over:
            if not done:
                frame = sys._current_frames().get(thread)
                stack.extend(traceback.format_stack(frame)[-1:])
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_SetUpTooLongError))

    done: list[bool] = []
    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with over:
                done.append(True)
            timer.cancel()
    except _SetUpTooLongError:
        raise PluginError(f"strategy {strategy!r}: nothing has happened for {seconds:g} s, in the setup of the tape\n"
                          + "".join(stack).rstrip(), strategy) from None


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
