# SPDX-License-Identifier: GPL-2.0-only
"""plugins/strategies/_spf_rfc5: options, which faults are speculative, and how each option shows on one thread."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from arch_under_test import ARCH, PAGE, frames

import pykmm
from pykmm import SegmentationFault
from pykmm.plugin import get_plugin_manager
from pykmm_ext.binding import MmStruct
from pykmm_ext.mm.memory_test import section
from pykmm_plugins.strategies._spf import SPF
from pykmm_plugins.strategies._spf_rfc5 import OPTIONS, SPFRFC5

PRIVATE, FIXED, ANON = 2, 0x10, 0x20
BASE = 0x7000_0000_0000


def machine(**options: str) -> pykmm.Machine:
    return pykmm.Machine(arch=ARCH, strategy=SPFRFC5(**options), cpus=2, memory=frames("16M"))


def mapping(m: pykmm.Machine, pages: int = 4) -> tuple[MmStruct, int]:
    """A mapping with its page table and its anon_vma: the last page was written."""
    mm = m.mm()
    a = mm.mmap(BASE, pages * PAGE, 3, PRIVATE | ANON | FIXED)
    mm.store(a + (pages - 1) * PAGE, b"x")
    return mm, a


def reasons(m: pykmm.Machine) -> dict[str, int]:
    return {name: n for name, n in m.counters.items() if n and name not in ("attempts", "retried")}


def test_names_and_options() -> None:
    assert SPFRFC5().name == "spf-rfc5"
    assert SPFRFC5(ptl="spin", recheck="off").name == "spf-rfc5[ptl=spin,recheck=off]"
    assert SPFRFC5().counter_names == SPF().counter_names
    made = get_plugin_manager().strategies.make("spf-rfc5[ptl=spin, seq=writers]")
    assert made.name == "spf-rfc5[ptl=spin,seq=writers]"
    with pytest.raises(ValueError, match="no option 'lock'; known: fixes, ptl, tables"):
        SPFRFC5(lock="spin")
    with pytest.raises(ValueError, match="ptl is trylock or spin, not 'maybe'"):
        SPFRFC5(ptl="maybe")


def test_errors_through_a_machine() -> None:
    for text, message in (
            ("spf-rfc5[lock=spin]", "strategy 'spf-rfc5' has no option 'lock'; its options: fixes, ptl, tables"),
            ("spf-rfc5[ptl=maybe]", "strategy 'spf-rfc5': unknown ptl 'maybe'; known: trylock, spin"),
            ("spf[ptl=spin]", "strategy 'spf' has no option 'ptl'; its options: munmap"),
            ("spf-rfc5[ptl]", "expected option=value"), ("spf-rfc5[ptl=spin", "no name with options"),
            ("spf-rfc5[ptl=spin,ptl=spin]", "given twice"), ("nope[a=b]", "unknown strategy 'nope'")):
        with pytest.raises(ValueError) as error:
            pykmm.Machine(strategy=text)
        assert message in str(error.value)


@pytest.fixture(params=[f"{option}={value}" for option, values in OPTIONS.items() for value in values])
def m(request: pytest.FixtureRequest) -> Iterator[pykmm.Machine]:
    option, _, value = request.param.partition("=")
    with machine(**{option: value}) as made:
        yield made
        made.validate()


def test_every_option_on_one_thread(m: pykmm.Machine) -> None:
    mm, a = mapping(m)
    before = m.counters["speculative"]
    mm.store(a, b"y")
    assert mm.load(a + PAGE, 1) == b"\0"
    assert m.counters["speculative"] - before == 2
    mm.mprotect(a, PAGE, 1)
    with pytest.raises(SegmentationFault, match="ACCERR"):
        mm.store(a, b"z")
    assert mm.load(a, 1) == b"y"
    mm.mprotect(a, PAGE, 3)
    child = mm.fork()
    mm.store(a, b"z")
    assert child.load(a, 1) == b"y"
    mm.madvise(a, 4 * PAGE, 4)
    assert mm.load(a, 1) == b"\0"
    mm.munmap(a, 4 * PAGE)
    with pytest.raises(SegmentationFault, match="MAPERR"):
        mm.load(a, 1)
    child.exit()


def test_tables_are_made_by_option_only() -> None:
    for tables, speculative in (("posted", 0), ("lookup", 0), ("alloc", 1)):
        with machine(tables=tables) as m:
            mm = m.mm()
            mm.load(mm.mmap(BASE, PAGE, 3, PRIVATE | ANON | FIXED), 1)
            assert reasons(m) == ({"speculative": 1} if speculative else {"no_page_table": 1})
            m.validate()


@pytest.mark.parametrize(("seq", "inside"), [("plain", 1), ("plain", 2), ("writers", 1), ("writers", 2)])
def test_one_and_two_writers_inside(seq: str, inside: int) -> None:
    """With a plain count the second writer makes it even again: the fault does not see them."""
    with machine(seq=seq) as m:
        mm, a = mapping(m)
        section(mm, a, begins=inside)
        mm.load(a, 1)
        section(mm, a, ends=inside)
        blind = seq == "plain" and inside == 2
        assert reasons(m).get("vma_seq_busy", 0) == (0 if blind else 1)


def test_a_miss_is_believed_by_option() -> None:
    for miss, counted in (("fallback", 1), ("sigsegv", 0)):
        with machine(miss=miss) as m:
            mm = m.mm()
            with pytest.raises(SegmentationFault, match="MAPERR"):
                mm.load(BASE, 1)
            assert m.vmstat["fault_mmap_sem"] == counted


def test_the_shipped_recording() -> None:
    from pykmm.cli import example_path
    from pykmm.tape import Tape

    tape = Tape.load(example_path())
    for strategy in ("spf-rfc5", "spf-rfc5[fixes=all]"):
        with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory="256M") as m:
            result = m.run(tape)
            assert not result.mismatches
            assert not result.maps_diff()
            assert result.counters["speculative"] > 100
