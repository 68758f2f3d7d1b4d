# SPDX-License-Identifier: GPL-2.0-only
"""Reading recordings: decompression, finding the importer, and the maps files that lie beside a recording.

An importer is an object with ``name``, ``description``, ``sniff(first_lines, path) -> bool`` and
``load(path, lines) -> Tape``; plugins add them through ``pykmm_register_importers``.
"""
from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from pykmm.blame import in_words
from pykmm.errors import PluginError, PykmmError, TapeError

if TYPE_CHECKING:
    from pykmm.plugin import Entry
    from pykmm.tape import MapsLine, Tape

__all__ = ["Importer", "import_recording", "maps_beside", "read_lines"]

_SNIFFED = 400


class Importer(Protocol):
    """What a plugin registers to read one kind of recording."""

    name: str
    description: str

    def sniff(self, first_lines: list[str], path: str) -> bool:
        """Whether the text looks like this importer's."""

    def load(self, path: str, lines: Iterable[str]) -> Tape:
        """The tape. Raises TapeError with file and line."""


def read_lines(path: str) -> list[str]:
    """The lines of a text file, decompressed where it is xz or gzip. Raises OSError, or TapeError with the line."""
    with open(path, "rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        compressed: type[lzma.LZMAFile | gzip.GzipFile]
        if magic.startswith(b"\xfd7zXZ"):
            compressed = lzma.LZMAFile
        elif magic.startswith(b"\x1f\x8b"):
            compressed = gzip.GzipFile
        else:
            return raw.read().decode("utf-8", "backslashreplace").splitlines()
    parts: list[bytes] = []
    with compressed(path) as box:
        try:
            while part := box.read1(1 << 16):
                parts.append(part)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            line = b"".join(parts).count(b"\n") + 1
            raise TapeError(f"damaged or truncated compressed file: {error}", path, line) from None
    return b"".join(parts).decode("utf-8", "backslashreplace").splitlines()


def maps_beside(path: str, which: str) -> list[MapsLine] | None:
    """``NAME.start-maps.txt`` or ``NAME.end-maps.txt`` beside ``NAME.perf-trace.txt.xz``; the longest NAME wins."""
    from pykmm.tape import parse_maps

    folder, stem = os.path.split(path)
    while stem:
        for suffix in ("", ".xz", ".gz"):
            found = os.path.join(folder, f"{stem}.{which}-maps.txt{suffix}")
            if os.path.isfile(found):
                return parse_maps(read_lines(found), found)
        shorter = os.path.splitext(stem)[0]
        if shorter == stem:
            break
        stem = shorter
    return None


def _asked(entry: Entry, method: str, importer: Importer, *arguments: Any) -> Any:
    """What a method of an importer returns. What another package's raises by mistake is a PluginError that names it."""
    from pykmm.plugin import BUILT_IN

    try:
        return getattr(importer, method)(*arguments)
    except PykmmError:
        raise
    except Exception as error:
        if entry.distribution == BUILT_IN:
            raise
        raise PluginError(f"importer {entry.name!r} ({entry.source}): {method}(): {in_words(error)}",
                          entry.origin) from error


def import_recording(path: str) -> Tape:
    """What ``Tape.load`` does with everything that is not an ``.npz``."""
    from pykmm.plugin import get_plugin_manager
    from pykmm.tape import Tape

    lines = read_lines(path)
    if not any(line.strip() for line in lines):
        raise TapeError("the file is empty", path, 1)
    registry = get_plugin_manager().importers
    names = registry.names()
    for name in names:
        importer: Importer = registry.make(name)
        if _asked(registry.entry(name), "sniff", importer, lines[:_SNIFFED], path):
            tape = _asked(registry.entry(name), "load", importer, path, lines)
            if not isinstance(tape, Tape):
                raise PluginError(f"importer {name!r} ({registry.entry(name).source}): load() returned a "
                                  f"{type(tape).__name__}, and no pykmm.tape.Tape", name)
            tape.importer, tape.source = name, path
            tape.validate()
            return tape
    first = next(i for i, line in enumerate(lines, 1) if line.strip())
    raise TapeError(f"no recording that an importer understands ({', '.join(names) or 'none registered'}): "
                    f"{lines[first - 1].strip()[:60]!r}", path, first)
