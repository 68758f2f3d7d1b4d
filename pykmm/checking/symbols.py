# SPDX-License-Identifier: GPL-2.0-only
"""Names for return addresses: the symbol tables of the extension modules that this process has loaded.

Only Linux, ELF64, and addresses of this process. A module without a symbol table (stripped) gives no names.
"""
from __future__ import annotations

import bisect
import functools
import re
import struct
from dataclasses import dataclass

import numpy as np

__all__ = ["Symbol", "callers", "demangle", "lookup", "with_names"]

_SHT_SYMTAB, _SHT_DYNSYM, _STT_FUNC, _PT_LOAD = 2, 11, 2, 1
_SYM = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")])
#: Modules whose functions are the engine's own, not of what it runs.
ENGINE = ("pykmm_ext.engine.check",)
_SUFFIX = re.compile(r"\.(?:part|isra|constprop|cold|lto_priv)(?:\.\d+)*")
_PLACE = re.compile(r"\bat pc 0x([0-9a-f]+)")   # check_race.h: race_side()
_CYTHON = re.compile(r"__pyx_(?:f|pf|pw|fuse_\d+)_?")


@dataclass(frozen=True)
class Symbol:
    """A function of a loaded module."""

    module: str     #: "pykmm_ext.mm.memory"; the file's name for what is no module of pykmm
    name: str       #: "set_pte"; "" when the module has no symbol there

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]}.{self.name}" if self.name else self.module

    @property
    def primitive(self) -> bool:
        """A function of kernel/, such as down_read(): its caller says more."""
        return self.module.startswith("pykmm_ext.kernel.")


def demangle(name: str) -> str:
    """``__pyx_f_9pykmm_ext_2mm_6memory_set_pte`` -> ``set_pte``; classes stay: ``Machine.run``. C names: unchanged."""
    name = _SUFFIX.sub("", name)
    match = _CYTHON.match(name)
    if match is None:
        return name
    rest, words = name[match.end():], []
    while (length := re.match(r"(\d+)", rest)) is not None:
        start = length.end()
        word = rest[start:start + int(length[1])]
        if len(word) < int(length[1]):
            break
        words.append(word)
        rest = rest[start + len(word):].removeprefix("_")
    if not rest and words:      # Python functions are numbered: 3run is no segment of three letters
        rest = words.pop()
    classes = [word for word in words if word[:1].isupper()]
    return ".".join([*classes, rest])


def _module_name(path: str) -> str:
    for top in ("/pykmm_ext/", "/pykmm_plugins/", "/plugins/"):
        at = path.rfind(top)
        if at >= 0:
            words = path[at + 1:].split("/")
            words[0] = "pykmm_plugins" if words[0] == "plugins" else words[0]
            words[-1] = words[-1].partition(".")[0]
            return ".".join(words)
    return path.rpartition("/")[2]


class _Table:
    """The functions of one ELF file, by virtual address."""

    def __init__(self, path: str) -> None:
        self.starts: list[int] = []
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.loads: list[tuple[int, int, int]] = []     # (offset in the file, virtual address, length)
        try:
            with open(path, "rb") as file:
                self._read(file.read())
        except (OSError, struct.error, ValueError, IndexError):
            self.starts = []    # no names, then

    def _read(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            return
        phoff, shoff = struct.unpack_from("<QQ", data, 32)
        phsize, phnum, shsize, shnum = struct.unpack_from("<HHHH", data, 54)
        for i in range(phnum):
            kind, _, offset, vaddr, _, size = struct.unpack_from("<IIQQQQ", data, phoff + i * phsize)
            if kind == _PT_LOAD:
                self.loads.append((offset, vaddr, size))
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shsize) for i in range(shnum)]
        tables = [s for s in sections if s[1] == _SHT_SYMTAB] or [s for s in sections if s[1] == _SHT_DYNSYM]
        found: dict[int, tuple[int, str]] = {}
        for section in tables:
            offset, size, link = section[4], section[5], section[6]
            strings = sections[link][4]
            symbols = np.frombuffer(data, _SYM, size // _SYM.itemsize, offset)
            for symbol in symbols[(symbols["info"] & 15 == _STT_FUNC) & (symbols["value"] != 0)]:
                at = strings + int(symbol["name"])
                name = data[at:data.index(b"\0", at)].decode("utf-8", "replace")
                found[int(symbol["value"])] = int(symbol["size"]), name
        self.starts = sorted(found)
        self.sizes = [found[start][0] for start in self.starts]
        self.names = [found[start][1] for start in self.starts]

    def name(self, offset: int) -> str:
        """The function at an offset of the file, or ""."""
        for start, vaddr, size in self.loads:
            if start <= offset < start + size:
                address = offset - start + vaddr
                at = bisect.bisect_right(self.starts, address) - 1
                if at >= 0 and address < self.starts[at] + max(self.sizes[at], 1):
                    return self.names[at]
        return ""


@functools.cache
def _table(path: str) -> _Table:
    return _Table(path)


_maps: list[tuple[int, int, int, str]] = []


def _place(address: int) -> tuple[str, int] | None:
    """(path, offset in it) of an address of this process."""
    global _maps
    for fresh in (False, True):
        if fresh:
            found = []
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    words = line.split(maxsplit=5)
                    if len(words) == 6 and "x" in words[1] and words[5].startswith("/"):
                        low, high = (int(word, 16) for word in words[0].split("-"))
                        found.append((low, high, int(words[2], 16), words[5].rstrip("\n")))
            _maps = sorted(found)
        at = bisect.bisect_right(_maps, (address, 1 << 64, 0, "")) - 1
        if at >= 0 and address < _maps[at][1]:
            return _maps[at][3], address - _maps[at][0] + _maps[at][2]
    return None


@functools.lru_cache(maxsize=65536)
def lookup(address: int) -> Symbol | None:
    """The function that the return address `address` lies in; None where no file is mapped."""
    place = _place(address - 1)     # a call may be a function's last instruction
    if place is None:
        return None
    return Symbol(_module_name(place[0]), demangle(_table(place[0]).name(place[1])))


def with_names(message: str) -> str:
    """A message of the engine: "a plain store at pc 0x7f..." becomes "a plain store in mmap.vma_link()"."""
    def name(match: re.Match[str]) -> str:
        symbol = lookup(int(match[1], 16))
        return f"in {symbol}()" if symbol is not None and symbol.name else "in an unknown function"

    return _PLACE.sub(name, message)


def callers(frames: list[int]) -> list[Symbol]:
    """The functions of pykmm among return addresses, innermost first, without the engine's own."""
    found: list[Symbol] = []
    for address in frames:
        symbol = lookup(address)
        if (symbol is not None and symbol.name and symbol.module.startswith(("pykmm_ext.", "pykmm_plugins."))
                and symbol.module not in ENGINE):
            found.append(symbol)
    return found
