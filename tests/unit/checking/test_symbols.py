# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/symbols.py: names of return addresses."""
from __future__ import annotations

import pytest
from litmus_programs import increments

from pykmm.checking.symbols import Symbol, callers, demangle, lookup
from pykmm_ext.engine.check import Exploration


@pytest.mark.parametrize(("mangled", "name"), [
    ("__pyx_f_9pykmm_ext_2mm_6memory_set_pte", "set_pte"),
    ("__pyx_f_9pykmm_ext_2mm_6memory_do_wp_page.part.0", "do_wp_page"),
    ("__pyx_f_13pykmm_plugins_10strategies_4_spf_handle_fault.isra.0.cold", "handle_fault"),
    ("__pyx_pw_9pykmm_ext_7binding_7Machine_3run", "Machine.run"),
    ("spin_lock.constprop.0", "spin_lock"),
    ("main", "main"),
])
def test_demangle(mangled: str, name: str) -> None:
    assert demangle(mangled) == name


def test_frames_of_a_step() -> None:
    exploration = Exploration(increments(2), explorer="replay")
    steps = exploration.replay(())
    assert len(steps) == 2
    for step in steps:
        found = callers(step["frames"])
        assert str(found[0]) == "litmus.litmus_vcpu"
        assert all(symbol.module != "pykmm_ext.engine.check" for symbol in found)


def test_nothing_is_there() -> None:
    assert lookup(16) is None
    assert callers([16, 0x7fff_ffff_f000]) == []
    assert str(Symbol("pykmm_ext.kernel.rwsem", "down_read")) == "rwsem.down_read"
    assert Symbol("pykmm_ext.kernel.rwsem", "down_read").primitive
    assert not Symbol("pykmm_ext.mm.memory", "set_pte").primitive
