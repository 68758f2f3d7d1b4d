# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/workload.py, and what tapes have for it: repeat(), work, and a program that is built once."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pykmm
from pykmm.errors import TapeError
from pykmm.plugin import get_plugin_manager
from pykmm.tape import Work
from pykmm.workload import count, finish, make, parameters, register, start, together, whole_pages

PAGE = 4096


def test_make() -> None:
    tape = make("page_fault1[size=16K,iterations=2]")
    assert tape.source == "page_fault1[size=16K,iterations=2]"
    assert tape.work == Work("faults", (8,), 4 * PAGE)
    assert make("page_fault1[size=16K]", 3).work.counts == (4, 4, 4)
    assert parameters(get_plugin_manager().workloads.get("page_fault1"))["size"] == "128M"
    assert parameters(lambda size, *, threads=1: pykmm.Tape()) == {"threads": 1}
    assert parameters(type) == {}       # has no signature


@pytest.mark.parametrize(("text", "threads", "message"), [
    ("nope", None, "unknown workload 'nope'; known: page_fault1"),
    ("mmap1[colour=red]", None, "has no option 'colour'"),
    ("mmap1[threads=2]", 2, "exclude each other"), ("mmap1[size=big]", None, r"mmap1\[size=big\]: size: 'big' is not"),
])
def test_bad_names(text: str, threads: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(text, threads)


class Plugin:
    """A third party's workloads."""

    @pykmm.hookimpl
    def pykmm_register_workloads(self, registry: pykmm.Registry) -> None:
        def touches(*, pages: int | str = 4, threads: int | str = 1) -> pykmm.Tape:
            tape = pykmm.Tape()
            area = tape.setup.mmap(count(pages, "pages") * PAGE)
            streams = start(tape, threads)
            for stream in streams:
                stream.touch(area, PAGE, "write")
            return finish(tape, "touches", [1] * len(streams), PAGE)

        def lone() -> pykmm.Tape:
            tape = pykmm.Tape()
            tape.thread().nop()
            return tape

        register(registry, "my-touches", touches, "for a test")
        register(registry, "my-lone", lone, "for a test")


@pytest.fixture
def plugin() -> Iterator[None]:
    manager = get_plugin_manager()
    before = dict(manager.workloads._entries)
    thing = Plugin()
    manager.add_plugin(thing, "test-workloads")
    yield
    manager.unregister(thing)
    manager.workloads._entries = before


@pytest.mark.usefixtures("plugin")
def test_of_a_third_party() -> None:
    tape = make("my-touches[pages=2]", 2)
    with pykmm.Machine(cpus=2) as machine:
        result = machine.run(tape)
    assert tape.work.counts == (1, 1)
    assert 0 < result.work_seconds <= result.elapsed
    assert result.rate == pytest.approx(2 / result.work_seconds)
    with pytest.raises(ValueError, match="has no threads to vary"):
        make("my-lone", 2)
    with pytest.raises(ValueError, match="says what it counts"):
        make("my-lone")


def test_bad_registrations() -> None:
    registry = pykmm.Registry("workload")

    def needy(*, size: int) -> pykmm.Tape:
        return pykmm.Tape()

    def fine(*, mode: str = "a") -> pykmm.Tape:
        return pykmm.Tape()

    with pytest.raises(ValueError, match="'size' has no default"):
        register(registry, "x", needy, "")
    with pytest.raises(ValueError, match="'a' is not one of"):
        register(registry, "x", fine, "", {"mode": ("b",)})
    with pytest.raises(ValueError, match="has no parameter colour"):
        register(registry, "x", fine, "", {"colour": ("b",)})
    assert not len(registry)


def test_numbers_and_sizes() -> None:
    assert (count("3", "n"), count(0, "n", 0)) == (3, 0)
    assert (whole_pages("5K"), whole_pages(1 << 20)) == (2 * PAGE, 1 << 20)
    for wrong in ("x", 0, "17T"):
        with pytest.raises(ValueError, match="size"):
            whole_pages(wrong)
    with pytest.raises(ValueError, match="mode is threads or processes"):
        start(pykmm.Tape(), 1, "fibers")


def test_the_work_begins_together_and_setup_is_not_timed() -> None:
    """No thread's work begins before the last thread is there; the time of the setup is in `elapsed` only."""
    tape = pykmm.Tape()
    tape.setup.compute(3_000_000)
    streams = [tape.thread() for _ in range(2)]
    together(tape, streams)
    for stream in streams:
        stream.compute(100_000)
    finish(tape, "turns", [1, 1], PAGE)
    with pykmm.Machine(cpus=2) as machine:
        for result in (machine.run(tape), machine.run(tape, "host")):
            assert result.elapsed >= 0.0031
            assert 0.0001 <= result.work_seconds <= result.elapsed - 0.003
            assert all(end - begin >= 0.0001 for begin, end in result.spans)
    waits = tape.program()
    assert len(waits.dep_stream) >= 3


def test_work_begins_when_its_first_operation_may_start() -> None:
    """Neither the NOPs before it nor the wait for another thread are in it."""
    tape = pykmm.Tape()
    first, second = tape.thread(), tape.thread()
    slow = first.compute(3_000_000)
    second.nop()
    tape.edges.append((slow, second.compute(100_000)))
    finish(tape, "turns", [0, 1], PAGE)
    with pykmm.Machine(cpus=2) as machine:
        for result in (machine.run(tape), machine.run(tape, "host")):
            (begin, end), (later, last) = result.spans
            assert later >= end > begin
            assert result.work_seconds == pytest.approx(last - later)


def test_only_threads_that_count_are_timed() -> None:
    tape = pykmm.Tape()
    tape.thread().compute(100_000)
    tape.thread().compute(5_000_000)
    finish(tape, "turns", [1, 0], PAGE)
    with pykmm.Machine(cpus=2) as machine:
        result = machine.run(tape)
    assert result.elapsed >= 0.005
    assert result.work_seconds == pytest.approx(result.spans[0][1] - result.spans[0][0])


def test_a_hand_written_tape_has_no_rate() -> None:
    tape = pykmm.Tape()
    tape.thread().nop()
    with pykmm.Machine() as machine:
        result = machine.run(tape)
    assert (result.work_seconds, result.rate) == (0, 0)
    assert result.spans == [(0, 0)]


# -- tapes -----------------------------------------------------------------------------------------------

def test_repeat() -> None:
    tape, plain = pykmm.Tape(), pykmm.Tape()
    for t, turns in ((tape, 1), (plain, 4)):
        whole = t.setup.mmap(PAGE)
        thread = t.thread()
        for _ in range(turns):
            area = thread.mmap(2 * PAGE)
            thread.touch(area + PAGE, access="read")
            thread.touch(whole)
            thread.munmap(area, 2 * PAGE)
    tape.repeat(1, 4)
    assert tape == plain
    assert tape.program().ops.tobytes() == plain.program().ops.tobytes()
    tape.repeat(1, 1)
    assert tape == plain
    for first, times in ((len(tape), 2), (-1, 2), (0, 0)):
        with pytest.raises(TapeError):
            tape.repeat(first, times)


def test_work_is_saved(tmp_path: Path) -> None:
    tape = make("mmap1[iterations=3]", 2)
    tape.save(tmp_path / "x.npz")
    back = pykmm.Tape.load(tmp_path / "x.npz")
    assert back == tape
    assert back.work == Work("iterations", (3, 3), 2 * PAGE)


def test_the_program_is_built_once_and_again_after_a_change() -> None:
    tape = make("mmap1[iterations=3]", 2)
    program = tape.program()
    assert tape.program() is program
    assert tape.program(2) is not program
    program = tape.program()
    tape.ops["len"][-1] = 4096
    changed = tape.program()
    assert changed is not program
    assert int(changed.ops["len"].min()) < int(program.ops["len"][program.ops["op"] == 1].min())
    tape.edges.append((0, len(tape) - 1))
    assert tape.program() is not changed
