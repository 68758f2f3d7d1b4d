# SPDX-License-Identifier: GPL-2.0-only
"""plugins/importers: recordings become tapes that can run, in every order that their waits allow.

``PYKMM_TRACES`` may name a directory of further recordings; those shipped with pykmm are always used.
"""
from __future__ import annotations

import gzip
import lzma
import os
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_machine import apply, interleave, of_layout, of_maps
from recordings import EXEC, A, calls, perf

import pykmm.data
from pykmm.errors import TapeError
from pykmm.plugin import get_plugin_manager
from pykmm.tape import NO_RESULT, OPCODES, Tape
from pykmm.tape_layout import Layout

SHIPPED = pathlib.Path(pykmm.data.__file__).parent
MORE = os.environ.get("PYKMM_TRACES")
TRACES = {path.name: path for folder in filter(None, (MORE, SHIPPED)) for path in
          sorted(pathlib.Path(folder).glob("*.perf-trace.txt.xz"))}


@pytest.fixture(scope="module", params=sorted(TRACES))
def trace(request):
    """(path, text lines, tape) of one recording."""
    path = TRACES[request.param]
    with lzma.open(path, "rt") as box:
        return path, box.read().splitlines(), Tape.load(path)

# -- recordings of real programs -----------------------------------------------------------------------------


def test_shipped_recordings_are_there():
    assert {"python-threads.perf-trace.txt.xz", "gcc-hello.perf-trace.txt.xz"} <= set(TRACES)


def test_counts_are_those_of_the_text(trace):
    _, lines, tape = trace
    text = "\n".join(lines)
    faults = len(re.findall(r"^.{20,40}: .*/\d+ (?:min|maj)fault \[", text, re.MULTILINE))
    assert sum(tape.notes.faults.values()) == faults
    kinds = tape.summary()["by_kind"]
    assert kinds["touch"] == faults
    guessed = sum(count for kind, count in tape.notes.unknown.items() if kind.startswith("mmap of which only"))
    assert kinds["mmap"] == len(re.findall(r"/\d+ mmap\(", text)) + guessed
    assumed = sum(int(m[1]) for m in (re.match(r"(\d+) unmappings assumed", x) for x in tape.notes.remarks) if m)
    assert kinds["munmap"] == len(re.findall(r"/\d+ munmap\(", text)) + assumed
    assert kinds["mprotect"] == len(re.findall(r"/\d+ mprotect\(", text))
    assert kinds["brk"] == len(re.findall(r"/\d+ brk\(", text))
    assert kinds.get("exec", 0) + 1 == len(re.findall(r"execve\(.*= 0$", text, re.MULTILINE))
    assert tape.notes.lines == len(lines)
    assert sum(tape.notes.unknown.values()) <= 3
    assert len(tape.threads) == len(set(re.findall(r"/(\d+) +(?:\w+\(|\w+fault \[)", text)))


@pytest.mark.parametrize("seed", range(3))
def test_every_order_that_the_waits_allow_is_possible_and_ends_alike(trace, seed):
    _, _, tape = trace
    problems, spaces = interleave(tape.program(), seed)
    assert not problems
    assert of_layout(spaces[tape.main_mm]) == of_maps(tape.end_maps[tape.main_mm])


def test_a_stream_never_waits_for_itself_or_twice(trace):
    _, _, tape = trace
    p = tape.program()
    owner = np.repeat(np.arange(p.nstreams), np.diff(p.stream_start))
    waiting = np.repeat(owner, np.diff(p.dep_start))
    assert (waiting != p.dep_stream).all()
    assert (p.dep_pos < np.diff(p.stream_start)[p.dep_stream]).all()
    assert sorted(p.order.tolist()) == list(range(len(tape)))


def test_names_of_files_are_found(trace):
    _, _, tape = trace
    wanted = {line.name for line in tape.end_maps[tape.main_mm] if line.ino}
    known = {file.name for file in tape.files}
    assert len(wanted - known) <= 1
    for file in tape.files:
        assert file.size > 0


def test_touches_lie_in_their_files(trace):
    _, _, tape = trace
    assert (tape.ops["addr"][tape.ops["op"] == OPCODES["TOUCH"]] < 1 << 47).all()


def test_maps_are_emitted_once_and_exits_last(trace):
    _, _, tape = trace
    ops = tape.ops
    started = ops[(ops["op"] == OPCODES["MAP"]) & (ops["mm"] == tape.main_mm)]
    wanted = [x for x in tape.start_maps[tape.main_mm] if x.end < 1 << 56]
    assert started["addr"].tolist() == [x.start for x in wanted]
    for at in np.nonzero(ops["op"] == OPCODES["EXIT"])[0]:
        assert not (ops["mm"][at + 1:] == ops["mm"][at]).any()
    assert not (ops["mm"][ops["op"] == OPCODES["EXIT"]] == tape.main_mm).any()


def test_npz_keeps_everything(trace, tmp_path):
    _, _, tape = trace
    tape.save(tmp_path / "t.npz")
    assert Tape.load(tmp_path / "t.npz") == tape


def test_vfork_children_use_the_parents_address_space_until_exec():
    tape = Tape.load(SHIPPED / "gcc-hello.perf-trace.txt.xz")
    assert tape.mms == 5
    assert [thread.tid for thread in tape.threads] == [29626, 29627, 29628, 29629, 29630]
    ops = tape.ops
    cc1 = ops[ops["thread"] == 1]
    at = int(np.nonzero(cc1["op"] == OPCODES["EXEC"])[0][0])
    assert set(cc1["mm"][:at + 1].tolist()) == {0}
    assert set(cc1["mm"][at + 1:].tolist()) == {1}
    assert len(tape.edges) == 4                     # four parents that wait for their child's exec
    assert tape.notes.assumed["/usr/lib/gcc/x86_64-linux-gnu/12/cc1"] >= 1


# -- order, on recordings made up ----------------------------------------------------------------------------


@st.composite
def legal_recordings(draw):
    """A sequence of operations by several threads, each possible when its turn comes."""
    t = Tape(recorded=True)
    for _ in range(draw(st.integers(2, 4))):
        t.add_thread()
    layout = Layout()
    for _ in range(draw(st.integers(1, 40))):
        thread = draw(st.integers(0, len(t.threads) - 1))
        page, pages = draw(st.integers(0, 11)), draw(st.integers(1, 4))
        address, end = A + (page << 12), A + (page + pages << 12)
        there = layout.overlapping(address, end)
        kind = draw(st.sampled_from(["mmap", "mmap", "munmap", "mprotect", "touch", "touch", "touch"]))
        if kind == "mmap" and not there:
            prot = draw(st.sampled_from([1, 3]))
            layout.map(address, end, prot, 0x22)
            t.append("MMAP", thread=thread, addr=address, len=pages << 12, prot=prot, flags=0x22, result=address)
        elif kind == "munmap" and there:
            layout.unmap(address, end)
            t.append("MUNMAP", thread=thread, addr=address, len=pages << 12, result=0)
        elif kind == "mprotect" and layout.covered(address, end):
            prot = draw(st.sampled_from([1, 3]))
            layout.protect(address, end, prot)
            t.append("MPROTECT", thread=thread, addr=address, len=pages << 12, prot=prot, result=0)
        elif kind == "touch" and layout.find(address):
            writable = layout.find(address).prot & 2
            t.append("TOUCH", thread=thread, addr=address, access=draw(st.integers(0, 1)) if writable else 0)
    return t


@pytest.mark.parametrize("below", [False, True])
def test_a_fault_waits_for_the_merge_that_makes_its_vma_anonymous(below):
    """Two mappings, of which one was written; a third fills the hole. A first write to the other one that came before
    would give that an anon_vma of its own, and they would not be one VMA at the end."""
    tape = Tape(recorded=True)
    tape.add_thread()
    tape.add_thread()
    written, other = (A + 0x6000, A + 0x1000) if below else (A + 0x1000, A + 0x6000)
    for address, n in ((A + 0x1000, 0x2000), (A + 0x6000, 0x2000)):
        tape.append("MMAP", thread=0, addr=address, len=n, prot=3, flags=0x22, result=address)
    tape.append("TOUCH", thread=0, addr=written, access=1)
    tape.append("MMAP", thread=0, addr=A + 0x3000, len=0x3000, prot=3, flags=0x22, result=A + 0x3000)
    tape.append("TOUCH", thread=1, addr=other + 0x1000, access=1)
    for seed in range(40):
        problems, spaces = interleave(tape.program(), seed)
        assert not problems
        assert [(p.start, p.end) for p in spaces[0]] == [(A + 0x1000, A + 0x8000)]


@settings(max_examples=150, deadline=None)
@given(legal_recordings(), st.integers(0, 1 << 30))
def test_made_up_recordings_end_alike_in_every_allowed_order(tape, seed):
    program = tape.program()
    reference = Layout(merging=True)
    columns = {name: tape.ops[name].tolist() for name in tape.ops.dtype.names}

    class InOrder:
        order = np.arange(len(tape))

    for i in range(len(tape)):
        assert apply(columns, i, {0: reference}, set(), InOrder) is None
    problems, spaces = interleave(program, seed)
    assert not problems
    assert [(p.start, p.end, p.prot) for p in spaces[0]] == [(p.start, p.end, p.prot) for p in reference]

# -- what is no recording ------------------------------------------------------------------------------------


def test_compression_is_seen_in_the_content(tmp_path):
    text = (EXEC + "     1.000 ( 0.010 ms): p/10 brk() = 0x500000\n").encode()
    for name, data in (("a", text), ("b", lzma.compress(text)), ("c.txt", gzip.compress(text))):
        (tmp_path / name).write_bytes(data)
        assert [x[0] for x in calls(Tape.load(tmp_path / name))] == ["SETBRK", "BRK"]


@pytest.mark.parametrize(("name", "data", "line"), [
    ("empty.txt", b"", 1), ("blank.txt", b"\n \n", 1), ("text.txt", b"\nhello\nworld\n", 2),
    ("junk.bin", bytes(range(256)) * 20, 1), ("junk.xz", b"\xfd7zXZ\0" + bytes(range(200)), 1),
    ("junk.gz", b"\x1f\x8b\x08\0" + bytes(range(200)), 1),
])


def test_no_recording(tmp_path, name, data, line):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TapeError) as caught:
        Tape.load(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated_xz(tmp_path, part):
    data = (SHIPPED / "gcc-hello.perf-trace.txt.xz").read_bytes()
    path = tmp_path / "cut.perf-trace.txt.xz"
    path.write_bytes(data[:int(len(data) * part)])
    with pytest.raises(TapeError, match="truncated") as caught:
        Tape.load(path)
    assert caught.value.path == str(path)
    assert caught.value.line is not None


def test_maps_that_are_damaged(tmp_path):
    with pytest.raises(TapeError) as caught:
        perf(tmp_path, EXEC + "     1.000 ( 0.010 ms): p/10 brk() = 0x500000\n", start="hello\n")
    assert caught.value.path == str(tmp_path / "t.start-maps.txt")
    assert caught.value.line == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_lines_never_crash(tmp_path_factory, data):
    """Characters of a real recording changed at random: a tape, or a TapeError."""
    with lzma.open(SHIPPED / "python-threads.perf-trace.txt.xz", "rt") as box:
        lines = box.read().splitlines()
    begin = data.draw(st.integers(0, len(lines) - 60))
    chosen = lines[begin:begin + 60]
    for _ in range(data.draw(st.integers(1, 20))):
        i = data.draw(st.integers(0, len(chosen) - 1))
        at = data.draw(st.integers(0, max(len(chosen[i]) - 1, 0)))
        chosen[i] = chosen[i][:at] + data.draw(st.sampled_from("0x9f)(,:=@ .?-\0")) + chosen[i][at + 1:]
    path = tmp_path_factory.mktemp("damaged") / "d.txt"
    path.write_text("\n".join(chosen))
    try:
        tape = Tape.load(path)
    except TapeError as error:
        assert error.line is not None
    else:
        tape.program()


def test_importers_are_registered():
    registry = get_plugin_manager().importers
    assert {"perf-trace", "strace"} <= set(registry.names())
    for name in registry.names():
        importer = registry.get(name)()
        assert importer.description
        assert not importer.sniff([], "x")
        assert importer.name == name


def test_result_marker():
    assert np.iinfo(np.int64).min == NO_RESULT
