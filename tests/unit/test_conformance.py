# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext.conformance: what is told of a table is all of it."""
from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

import pykmm_ext
from pykmm_ext.conformance import arch_table, strategy_table
from pykmm_plugins.arch._x86 import X86
from pykmm_plugins.strategies._mmap_sem import MmapSem


@pytest.mark.parametrize(("header", "table"), [
    ("strategy.h", strategy_table(MmapSem())), ("arch.h", arch_table(X86()))])
def test_every_function_of_the_header_is_there_in_its_order(header: str, table: Any) -> None:
    text = (pathlib.Path(pykmm_ext.get_include()) / "kmm" / header).read_text()
    structure = re.search(r"struct (?:strategy|arch)_ops \{(.*?)\n\};", text, re.S)
    assert structure
    assert list(table["members"]) == re.findall(r"\(\*(\w+)\)\(", structure[1])


def test_what_is_there() -> None:
    assert [name for name, there in strategy_table(MmapSem())["members"].items() if there] == ["handle_fault"]
