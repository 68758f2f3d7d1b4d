# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the tests of the built-in strategies and arches."""
import pytest

from pykmm_ext.binding import Machine, MmStruct


@pytest.fixture
def mm(m: Machine) -> MmStruct:
    """An empty address space of the test file's machine."""
    return m.mm()
