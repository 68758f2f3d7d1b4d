# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/flags.py: names and values, against the ones that this system's C library and Python know."""
from __future__ import annotations

import errno
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykmm import flags


@pytest.mark.parametrize(("family", "prefix"), [(flags.MAP, "MAP_"), (flags.PROT, "PROT_"), (flags.MADV, "MADV_")])
def test_values_agree_with_the_standard_library(family, prefix):
    known = {name: getattr(mmap, name) for name in dir(mmap) if name.startswith(prefix) and name in family}
    assert len(known) >= 3
    assert known == {name: family[name] for name in known}


@pytest.mark.parametrize(("text", "value"), [
    ("rw", 3), ("r-x", 5), ("r--", 1), ("", 0), ("---", 0), ("READ|WRITE", 3), ("PROT_READ|PROT_EXEC", 5),
    ("PROT_NONE", 0), ("NONE", 0), ("0x3", 3), (7, 7), ("READ|WRITE|0x10", 0x13),
])
def test_parse_prot(text, value):
    assert flags.parse_prot(text) == value


@pytest.mark.parametrize(("text", "value"), [
    ("PRIVATE|ANONYMOUS|STACK", 0x20022), ("MAP_SHARED", 1), ("PRIVATE|FIXED|DENYWRITE", 0x812),
    ("MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT", 0x40022 | 21 << 26), ("MAP_32BIT", 0x40),
    ("MAP_FIXED_NOREPLACE", 0x100000), ("", 0),
])
def test_parse_map(text, value):
    assert flags.parse_map(text) == value


@pytest.mark.parametrize("parse", [flags.parse_prot, flags.parse_map, flags.parse_madvise])
@pytest.mark.parametrize("text", ["WEIRD", "MAP_WEIRD", "READ|", "|", "x<<y"])
def test_unknown_names_are_named(parse, text):
    with pytest.raises(ValueError, match="flag|empty name|advice") as caught:
        parse(text)
    assert text.strip("|").split("|")[0] in str(caught.value)


def test_advice_is_one_value():
    assert flags.parse_madvise("DONTNEED") == flags.parse_madvise("MADV_DONTNEED") == 4
    with pytest.raises(ValueError, match="one advice"):
        flags.parse_madvise("DONTNEED|FREE")
    assert flags.format_madvise(4) == "MADV_DONTNEED"
    assert flags.format_madvise(99) == "99"


@given(st.integers(0, (1 << 27) - 1))
def test_formatting_is_read_back(value):
    assert flags.parse_map(flags.format_map(value)) == value
    assert flags.parse_prot(flags.format_prot(value & 0xF)) == value & 0xF
    assert flags.parse_flags(flags.format_flags(value & 7, flags.MREMAP), flags.MREMAP) == value & 7


def test_formats():
    assert flags.format_prot(3) == "PROT_READ|PROT_WRITE"
    assert flags.format_prot(0) == "PROT_NONE"
    assert flags.format_perms(5, shared=True) == "r-xs"
    assert flags.format_map(0x22) == "MAP_PRIVATE|MAP_ANONYMOUS"
    assert flags.format_map(0x23) == "MAP_SHARED_VALIDATE|MAP_ANONYMOUS"


def test_errno():
    assert flags.errno_value("ENOMEM") == errno.ENOMEM
    assert flags.errno_name(-12) == "ENOMEM"
    assert flags.errno_name(0) == "0"
    for bad in ("EWEIRD", "errorcode", -3):
        with pytest.raises(ValueError, match="errno"):
            flags.errno_value(bad)
