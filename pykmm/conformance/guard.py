# SPDX-License-Identifier: GPL-2.0-only
"""Running a check in a process of its own: a plugin that never comes back, or corrupts memory, fails its check only."""
from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import NoReturn

from pykmm.blame import foreign_traceback
from pykmm.conformance.report import Failure

__all__ = ["NOT_DONE", "Outcome", "guarded", "note"]

#: What was done in words, and what is wrong.
Outcome = tuple[str, list[Failure]]
#: What was done where the process was lost.
NOT_DONE = "did not come to its end"

_NOTE = 512
_notes: mmap.mmap | None = None     # in the child: where note() writes, shared with the parent


def note(text: str) -> None:
    """What is about to be done: said where it is not survived."""
    if _notes is not None:
        data = text.encode()[:_NOTE - 1]
        _notes[:len(data) + 1] = data + b"\0"


def guarded(function: Callable[[], Outcome], seconds: float) -> Outcome:
    """What `function` gives in a forked child. A child that dies, or is not done after `seconds`, is a failure.

    Reports of scenarios lose what they were made from where that cannot be sent (``CheckReport.source``).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    notes = mmap.mmap(-1, _NOTE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # 3.12: fork() of a process with threads
        child = os.fork()
    if child == 0:
        os.close(reader)
        _child(function, writer, notes)
    os.close(writer)
    data = None
    try:
        data = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        if data is None:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        at = notes[:].partition(b"\0")[0].decode("utf-8", "replace")
        notes.close()
    where = f", at: {at}" if at else ""
    if data is None:
        return NOT_DONE, [Failure(f"not done after {seconds:.0f} s, and ended{where}. A fault that is reported as done "
                                  "and is not, again and again; or a lock that is never released")]
    if status < 0:
        return NOT_DONE, [Failure(f"the process that ran it was killed by {signal.Signals(-status).name}{where}. "
                                  "Memory of the simulated kernel was corrupted, or a pointer led nowhere")]
    if not data:
        return NOT_DONE, [Failure(f"the process that ran it ended with status {status} and without a result{where}")]
    detail, failures = pickle.loads(data)
    return str(detail), list(failures)


def _read(reader: int, deadline: float) -> bytes | None:
    """Everything, or None where the other end is not closed by the deadline."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _child(function: Callable[[], Outcome], writer: int, notes: mmap.mmap) -> NoReturn:
    global _notes
    _notes = notes
    status = 1
    try:
        faulthandler.disable()
        try:
            outcome = function()
        except Exception as error:
            lines = foreign_traceback(error)
            at = notes[:].partition(b"\0")[0].decode("utf-8", "replace")
            outcome = (NOT_DONE, [Failure(f"the check ended with {type(error).__name__}: {error}"
                                          f"{f', at: {at}' if at else ''}", lines)])
        with os.fdopen(writer, "wb") as out:
            out.write(_pack(outcome))
        status = 0
    finally:
        os._exit(status)    # nothing of what this process shares with its parent may be closed twice


def _pack(outcome: Outcome) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception:
        for failure in outcome[1]:
            if failure.check is not None:
                failure.check.source = None
        return pickle.dumps(outcome)
