# SPDX-License-Identifier: GPL-2.0-only
"""The setup of a tape on the check engine, with a watchdog."""
from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar, cast

from pykmm.errors import PluginError
from pykmm.machine import watchdog_seconds

__all__ = ["watched_setup"]

T = TypeVar("T")

#: Seconds for a thread to end once it was told to.
_GIVE_UP = 1.0


class _SetUpTooLongError(BaseException):
    """Ends what the strategy's Python code is at, in the thread that runs a tape's setup."""


def watched_setup(make: Callable[[], T], strategy: str) -> T:
    """What `make` returns, which runs the setup of a tape: PluginError when that takes longer than ``PYKMM_WATCHDOG``,
    or 60, seconds.

    The setup is no part of the search: there is no schedule in which it could be found to be endless. It has a thread
    of its own. Python code is ended there; a wait in a kernel function is not, and its thread is left behind.
    """
    seconds = watchdog_seconds()
    if not seconds:
        return make()
    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((make(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, name="pykmm: setup of a tape", daemon=True)
    thread.start()
    stack: list[str] = []
    try:
        thread.join(seconds)
    finally:
        if thread.is_alive():
            number = thread.ident or 0
            frame = sys._current_frames().get(number)
            if frame is not None and frame.f_code is not run.__code__:      # else it loops in compiled code
                stack = traceback.format_stack(frame)[-1:]
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(number), ctypes.py_object(_SetUpTooLongError))
            thread.join(_GIVE_UP)
    made, error = ended[0] if ended else (None, _SetUpTooLongError())
    if isinstance(error, _SetUpTooLongError):
        raise PluginError(f"strategy {strategy!r}: nothing has happened for {seconds:g} s, in the setup of the tape\n"
                          + "".join(stack).rstrip(), strategy) from None
    if error is not None:
        raise error
    return cast("T", made)
