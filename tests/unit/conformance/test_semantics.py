# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/conformance/semantics.py: outcomes in units that do not depend on the page size, and their differences."""
from __future__ import annotations

import dataclasses

import pytest

from pykmm.conformance import semantics
from pykmm.conformance.programs import Layout, Program, Step, generate, write
from pykmm.conformance.semantics import Outcome, base_of, compare_programs, differences, on_linux
from pykmm.conformance.subject import Subject

PROGRAM = Program("single", 0, 1, (Step("mmap", 0, at=1, pages=3, prot=3, flags=0x10), Step("load", 0, at=1)))
SAME = Outcome((0, 14), (0, 1), (("window 0", 1, 0), None), (None, b"\0"), ((("window 0", 1, 0, 3.0, "rw-p", 0.0),),))


def subject(**options: str) -> Subject:
    return Subject(options.pop("strategy", "mmap_sem"), effort="quick", **options)  # type: ignore[arg-type]


def changed(**fields: object) -> list[str]:
    return differences({0: "the mmap", 1: "the load"}, SAME, dataclasses.replace(SAME, **fields), "Linux")  # type: ignore[arg-type]


def test_differences_are_sentences() -> None:
    assert changed() == []
    assert changed(errnos=(12, 14)) == ["the mmap: ENOMEM, Linux: success"]
    assert changed(codes=(0, 2)) == ["the load: EFAULT (ACCERR), Linux: EFAULT (MAPERR)"]
    assert changed(places=(("window 0", 2, -1), None)) == [
        "the mmap: gave page 2 -1 of window 0, Linux: page 1 of window 0"]
    assert changed(maps=((),)) == [
        "mappings of address space 0 in the end: nothing, Linux: pages 1 to 4 of window 0 rw-p offset 0"]
    assert changed(maps=()) == ["0 address spaces in the end, Linux: 1"]
    loaded = dataclasses.replace(SAME, errnos=(0, 0))
    assert differences({1: "the load"}, loaded, dataclasses.replace(loaded, loads=(None, None)), "Linux") == [
        "the load: loaded other bytes than Linux, which has b'\\x00'"]


@pytest.mark.skipif(not semantics.host_available(), reason="the host engine makes system calls of x86-64 Linux")
@pytest.mark.parametrize("span", [2 << 20, 8 << 20])
def test_linux_gives_an_outcome_in_pages(span: int) -> None:
    outcome = on_linux(PROGRAM, span)
    written = write(PROGRAM, Layout(4096, span))
    assert outcome.errnos[written.ops[0]] == 0
    assert outcome.places[written.ops[0]] == ("window 0", 1, 0)
    assert outcome.loads[written.ops[1]] == bytes(4)
    assert outcome.maps == ((("window 0", 1, 0, 3.0, "rw-p", 0),),)
    # Of what is left, the loads outside of the mapping fail.
    assert {outcome.errnos[op] for op in written.probes} == {0, 14}


def test_without_a_kernel_to_ask_mmap_sem_is_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantics, "host_available", lambda: False)
    detail, failures = compare_programs(subject(strategy="spf"), "ordered")
    assert not failures
    assert detail.endswith("compared with strategy mmap_sem")
    assert detail.startswith("4 programs, ")


def test_the_base_is_the_border_of_two_page_tables() -> None:
    from pykmm.plugin import get_plugin_manager

    for arch in get_plugin_manager().arches.names():
        one = subject(arch=arch)
        assert base_of(one) % one.table_span == 0
        assert 0 < base_of(one) < one.task_size


def test_a_generated_program_is_shown_in_words() -> None:
    text = str(generate("ordered", 1))
    assert text.startswith("  0  thread ")
    assert "page" in text
