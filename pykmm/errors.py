# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions of the public API. System calls that fail raise the stdlib's OSError with Linux's errno instead.

Everything here derives from :class:`PykmmError`, so one ``except`` catches what is pykmm's own.
"""
from __future__ import annotations

import os

__all__ = ["BusError", "InvariantViolation", "PluginError", "PykmmError", "RunError", "SegmentationFault",
           "TapeError"]


class PykmmError(Exception):
    """Base class of the exceptions that pykmm itself defines."""


class TapeError(PykmmError, ValueError):
    """A tape, or the recording that it is read from, is malformed or describes something impossible.

    ``path`` is the file and ``line`` the line (counted from 1) where it was found; each is None where there is none.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None, line: int | None = None) -> None:
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.line = line
        super().__init__(message)

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.path, self.line) if part is not None)
        return f"{where}: {self.message}" if where else self.message

    def __reduce__(self) -> tuple[type[TapeError], tuple[str, str | None, int | None]]:
        return type(self), (self.message, self.path, self.line)


class RunError(PykmmError):
    """The run of a tape of which no figure can be made: an operation failed that nobody expected to fail."""


class SegmentationFault(PykmmError):
    """An access that Linux answers with SIGSEGV.

    ``address`` is the faulting address, ``code`` is "MAPERR" (nothing is mapped there) or "ACCERR" (the mapping
    does not allow the access), as ``si_code`` of sigaction(2) has it.
    """

    def __init__(self, address: int, code: str = "MAPERR") -> None:
        if code not in ("MAPERR", "ACCERR"):
            raise ValueError(f"SegmentationFault code must be MAPERR or ACCERR, not {code!r}")
        self.address = address
        self.code = code
        super().__init__(address, code)

    def __str__(self) -> str:
        return f"segmentation fault at {self.address:#x} (SEGV_{self.code})"


class BusError(PykmmError):
    """An access that Linux answers with SIGBUS: beyond the end of a mapped file, or no page could be had."""

    def __init__(self, address: int) -> None:
        self.address = address
        super().__init__(address)

    def __str__(self) -> str:
        return f"bus error at {self.address:#x}"


class InvariantViolation(PykmmError):
    """A structure of the simulated kernel is inconsistent: ``what`` is violated and ``where``."""

    def __init__(self, what: str, where: str = "") -> None:
        self.what = what
        self.where = where
        super().__init__(what, where)

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


class PluginError(PykmmError):
    """A plugin is unknown, cannot be loaded or registers nothing; ``name`` is the plugin asked for."""

    def __init__(self, message: str, name: str | None = None) -> None:
        self.message = message
        self.name = name
        super().__init__(message)

    def __reduce__(self) -> tuple[type[PluginError], tuple[str, str | None]]:
        return type(self), (self.message, self.name)
