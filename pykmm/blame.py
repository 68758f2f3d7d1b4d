# SPDX-License-Identifier: GPL-2.0-only
"""Whose mistake it is: what an exception has to do with the code of another package's plugin."""
from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable
from types import TracebackType

__all__ = ["foreign_traceback", "in_words", "plugin_frames", "unknown_name"]

_OURS = frozenset({"pykmm", "pykmm_ext", "pykmm_plugins"})
#: Packages between pykmm and a plugin's function.
_BETWEEN = frozenset({"pluggy", "importlib"})
#: Names that a message lists in full.
_FEW = 40


def _frames(trace: TracebackType | None, wanted: frozenset[str] | None) -> list[traceback.FrameSummary]:
    """Frames of these packages; None: of all but pykmm's own and those in between."""
    found = []
    for frame, line in traceback.walk_tb(trace):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in wanted if wanted is not None else \
                package not in _OURS | _BETWEEN and not frame.f_code.co_filename.startswith("<"):
            found.append(traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name))
    return found


def in_words(error: BaseException) -> str:
    """Type and message of an exception, and the line of other people's code that it came from, in one line."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = _frames(error.__traceback__, None)
    place = f" ({os.path.basename(where[-1].filename)}:{where[-1].lineno})" if where else ""
    return " ".join(text.split()) + place


def foreign_traceback(error: BaseException) -> str:
    """The traceback of an exception without pykmm's own lines; where there are no others, its last ones.

    None of a PluginError that no other code has raised: its message says what is wrong.
    """
    from pykmm.errors import PluginError

    frames = _frames(error.__traceback__, None)
    if not frames and isinstance(error, PluginError):
        return "".join(traceback.format_exception_only(error)).rstrip()
    if not frames:
        return "".join(traceback.format_exception(error)[-6:]).rstrip()
    lines = ["Traceback, without pykmm's own lines:\n", *traceback.format_list(frames)[-6:],
             *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()


def plugin_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where in plugins of other packages an exception came from, outer frames first; empty = nowhere."""
    from pykmm.plugin import registered_packages

    return _frames(error.__traceback__, registered_packages())


def unknown_name(kind: str, name: object, known: Iterable[str], listed_by: str = "pykmm list") -> str:
    """The message about a name that nobody knows: the known ones, or of very many those that are like it."""
    names = list(known)
    if len(names) <= _FEW:
        return f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}"
    close = difflib.get_close_matches(str(name), names, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}{listed_by!r} shows all {len(names)}"
