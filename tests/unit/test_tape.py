# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/tape*.py: the layout of operations, the builder, order, and files on disk."""
from __future__ import annotations

import copy
import io
import json
import os
import pathlib
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pykmm_ext
from pykmm.errors import SegmentationFault, TapeError
from pykmm.tape import DEFAULTS, NO_RESULT, OP_DTYPE, OPCODES, MapsLine, Tape, parse_maps

HEADER = pathlib.Path(pykmm_ext.__file__).parent / "include" / "kmm" / "tape.h"


def waits(program):
    """{tape index: {tape indices it explicitly waits for}}."""
    start = program.stream_start.tolist()
    found = {}
    for i in range(len(program)):
        found[int(program.order[i])] = {
            int(program.order[start[program.dep_stream[k]] + program.dep_pos[k]])
            for k in range(program.dep_start[i], program.dep_start[i + 1])}
    return found


def scenario():
    t = Tape()
    a = t.setup.mmap(0x4000, prot="rw")
    t.setup.store(a, b"A")
    x = t.thread()
    x.store(a, b"B")
    x.load(a, 1)
    y = t.thread()
    y.mprotect(a, 0x1000, "r")
    y.munmap(a + 0x1000, 0x1000)
    child = x.fork()
    child.load(a, 1)
    t.final.load(a, 1, expect=b"B")
    return t


# -- the contract with the compiled core --------------------------------------------------------------


def test_dtype_is_the_c_struct():
    text = HEADER.read_text()
    body = re.search(r"struct kmm_tape_op \{(.*?)\};", text, re.DOTALL)[1]
    sizes = {"double": "f8", "u64": "u8", "s64": "i8", "s32": "i4", "u16": "u2", "u8": "u1"}
    fields = re.findall(r"^\s*(\w+) (\w+);", body, re.MULTILINE)
    expected = np.dtype([(name, sizes[kind]) for kind, name in fields], align=True)
    assert OP_DTYPE == expected
    assert OP_DTYPE.itemsize == expected.itemsize == 104
    assert tuple(DEFAULTS) == OP_DTYPE.names


def test_opcodes_are_the_c_enum():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    names = re.findall(r"KMM_OP_(\w+)", re.search(r"enum kmm_tape_opcode \{(.*?)\}", text, re.DOTALL)[1])
    assert {name: i for i, name in enumerate(names)} == dict(OPCODES)


# -- the builder ------------------------------------------------------------------------------------------


def test_builder_scenario():
    t = scenario()
    p = t.program()
    assert p.stream_start.tolist() == [0, 6, 8, 9]
    assert p.order.tolist() == [0, 1, 2, 3, 6, 8, 4, 5, 7]
    assert waits(p) == {0: set(), 1: set(), 2: set(), 3: set(), 4: {1}, 5: set(), 6: set(), 7: {6}, 8: {5, 7}}
    assert p.ops["addr_ref"].tolist() == [-1, 0, 0, 0, -1, 0, 0, 0, 0]
    assert p.ops["phase"].tolist() == [0, 0, 1, 1, 1, 2, 1, 1, 1]
    assert p.roots == [0]
    assert p.mms == 2
    assert p.blobs == [b"A", b"B", b"B"]


def test_addresses_are_symbolic_with_arithmetic():
    t = Tape()
    a = t.setup.mmap(0x3000)
    t.setup.munmap(a + 0x1000, 0x1000)
    t.setup.touch(0x800 + a - 0x1000)
    ops = t.ops
    assert ops["addr"].tolist() == [0, 0x1000, (1 << 64) - 0x800]
    assert ops["addr_ref"].tolist() == [-1, 0, 0]
    assert a == a + 0
    assert a != a + 1
    assert len({a, a + 0, a + 1}) == 2
    with pytest.raises(TapeError, match="another tape"):
        Tape().setup.touch(a)
    with pytest.raises(TypeError, match="address"):
        t.setup.touch("0x1000")


def test_every_call_is_a_method_with_its_fields():
    t = Tape()
    s = t.setup
    a = s.mmap(0x2000, "r", shared=True, file="f", offset=0x1000)
    b = s.mmap(0x1000, prot=3, fixed=0x10000, flags="POPULATE")
    c = s.mmap(0x1000, fixed=True, addr=b + 0x1000, flags="SHARED")
    s.mremap(a, 0x2000, 0x4000, "MAYMOVE|FIXED", 0x700000)
    s.madvise(a, 0x1000, "DONTNEED")
    s.brk(s.brk() + 0x1000)
    s.mlock(a, 1, "ONFAULT")
    s.munlock(a, 1)
    s.mlockall("CURRENT|FUTURE")
    s.munlockall()
    s.msync(a, 1, "SYNC")
    s.mincore(a, 1)
    s.pin(a, 1, "write")
    s.unpin(a, 1)
    s.compute(250)
    s.mbind(a, 1, 2)
    s.munmap(a, -1, expect_errno="EINVAL")
    s.touch(a, 0x1000, "exec", expect_errno=14)
    s.load(a, expect=b"xyz")
    s.exit()
    ops = t.ops
    names = [list(OPCODES)[op] for op in ops["op"]]
    assert names == ["MMAP", "MMAP", "MMAP", "MREMAP", "MADVISE", "BRK", "BRK", "MLOCK", "MUNLOCK", "MLOCKALL",
                     "MUNLOCKALL", "MSYNC", "MINCORE", "PIN", "UNPIN", "COMPUTE", "MBIND", "MUNMAP", "TOUCH", "LOAD",
                     "EXIT"]
    assert ops["flags"][:4].tolist() == [1, 0x8032, 0x31, 3]
    assert ops["prot"][:3].tolist() == [1, 3, 3]
    assert ops["file"][:3].tolist() == [0, -1, -1]
    assert t.files[0].size == 0x3000
    assert ops["addr"][1] == 0x10000
    assert ops["addr_ref"][2] == 1
    assert (ops["new_addr"][3], ops["new_len"][3]) == (0x700000, 0x4000)
    assert (ops["addr"][6], ops["addr_ref"][6]) == (0x1000, 5)
    assert ops["len"][17] == (1 << 64) - 1
    assert ops["expect_errno"][[16, 17, 18]].tolist() == [-1, 22, 14]
    assert (ops["access"][18], ops["len"][19]) == (2, 3)
    assert (ops["result"] == NO_RESULT).all()
    assert c.op == 2


@pytest.mark.parametrize("wrong", [
    lambda s: s.mmap(0x1000, "rq"), lambda s: s.mmap(0x1000, flags="WEIRD"), lambda s: s.touch(0, 1, "look"),
    lambda s: s.compute(-1), lambda s: s.munmap(0, 1, expect_errno="EWEIRD"), lambda s: s.mmap(1, prot=1 << 40),
    lambda s: s.pin(0, 1, "exec"), lambda s: s.tape.file("f", size=-1),
])
def test_wrong_words_are_refused(wrong):
    t = Tape()
    with pytest.raises(ValueError, match=r"."):
        wrong(t.setup)
    assert len(t) == 0


def test_forks_and_threads_start_after_what_made_them():
    t = Tape()
    x = t.thread()
    first = x.fork()
    sibling = first.thread()
    last = first.touch(0x1000)
    touched = sibling.touch(0x2000)
    child = t.final.fork()
    inside = child.touch(0x3000)
    w = waits(t.program())
    assert first.mm == sibling.mm == 1
    assert child.mm == 2
    assert w[touched] == {touched - 2}      # the NOP that thread() left behind
    assert w[last] == set()                 # same stream as that NOP
    assert w[inside] == set()
    assert t.ops["phase"][inside] == 2


def test_hand_written_races_are_not_ordered():
    t = Tape()
    a = t.setup.mmap(0x1000)
    x, y = t.thread(), t.thread()
    x.touch(a)
    y.munmap(a, 0x1000)
    assert waits(t.program()) == {0: set(), 1: set(), 2: {0}}


def test_results_of_other_threads_are_waited_for():
    t = Tape()
    x, y = t.thread(), t.thread()
    a = x.mmap(0x1000)
    x.compute(1)
    y.touch(a)
    y.touch(a)
    assert waits(t.program()) == {0: set(), 1: set(), 2: {0}, 3: set()}


def test_impossible_orders_are_errors():
    t = Tape()
    a = t.thread().mmap(0x1000)
    t.setup.touch(a)
    with pytest.raises(TapeError, match="only after it"):
        t.program()
    t = Tape()
    a = t.final.mmap(0x1000)
    t.thread().touch(a)
    with pytest.raises(TapeError, match="only after it"):
        t.program()


def test_empty_tape_is_a_program():
    p = Tape().program()
    assert (len(p), p.nstreams, p.roots) == (0, 1, [0])


def test_streams_are_shared_only_under_a_limit():
    t = Tape()
    for _ in range(3):
        s = t.thread()
        s.compute(1)
        s.compute(2)
    assert t.program().nstreams == 3
    shared = t.program(max_streams=1)
    assert shared.nstreams == 1
    assert shared.order.tolist() == list(range(6))
    a, b = t.thread(), t.thread()
    a.compute(1)
    b.compute(1)
    a.compute(1)
    with pytest.raises(TapeError, match="same time"):
        t.program(max_streams=1)
    with pytest.raises(TapeError, match="at least one"):
        t.program(max_streams=0)


# -- the order of recordings ---------------------------------------------------------------------------------


def recorded(*ops):
    """A tape of (thread, opcode, fields)."""
    t = Tape(recorded=True)
    for thread, op, fields in ops:
        while len(t.threads) <= thread:
            t.add_thread()
        t.append(op, thread=thread, **{"result": 0, **fields})
    return t


def mapping(thread, address, pages=1, prot=3):
    return thread, "MMAP", {"addr": address, "len": pages << 12, "prot": prot, "flags": 0x22, "result": address}


def unmapping(thread, address, pages=1):
    return thread, "MUNMAP", {"addr": address, "len": pages << 12}


def touch(thread, address, access=1):
    return thread, "TOUCH", {"addr": address, "access": access, "result": NO_RESULT}


A = 0x7F0000000000


def test_use_waits_for_the_mapping_and_unmapping_for_the_use():
    w = waits(recorded(mapping(0, A, 4), touch(1, A), touch(2, A + 0x3000), unmapping(0, A, 4)).program())
    assert w == {0: set(), 1: {0}, 2: {1}, 3: {2}}      # 2 waits for 1, who gives the VMA its anon_vma


def test_reuse_of_addresses_waits_for_the_unmapping():
    w = waits(recorded(mapping(0, A), unmapping(0, A), mapping(1, A), touch(1, A)).program())
    assert w == {0: set(), 1: set(), 2: {1}, 3: set()}


def test_neighbours_are_ordered_and_strangers_are_not():
    w = waits(recorded(mapping(0, A), mapping(1, A + 0x1000), mapping(2, A + 0x9000)).program())
    assert w == {0: set(), 1: {0}, 2: set()}


def test_later_faults_of_a_vma_are_independent():
    faults = [touch(1 + i % 3, A + (i << 12)) for i in range(12)]
    w = waits(recorded(mapping(0, A, 12), *faults).program())
    assert w[1] == {0}
    assert w[2] == w[3] == {1}
    assert all(not w[i] for i in range(4, 13))


def test_reads_give_no_anon_vma():
    w = waits(recorded(mapping(0, A, 2), touch(1, A, 0), touch(2, A + 0x1000, 0)).program())
    assert w == {0: set(), 1: {0}, 2: {0}}


def test_whether_the_gap_closes_depends_on_who_has_an_anon_vma():
    """Two anonymous mappings with a hole: each has its own anon_vma before the hole is filled."""
    t = recorded(mapping(0, A), mapping(0, A + 0x2000), touch(1, A), touch(2, A + 0x2000), mapping(3, A + 0x1000))
    assert waits(t.program())[4] == {2, 3}


def test_implied_waits_are_left_out():
    w = waits(recorded(mapping(0, A, 3), touch(1, A), unmapping(1, A), touch(1, A + 0x1000),
                       unmapping(1, A + 0x1000)).program())
    assert w == {0: set(), 1: {0}, 2: set(), 3: set(), 4: set()}


def test_what_is_known_is_never_forgotten():
    t = Tape()
    x, y, z = t.thread(), t.thread(), t.thread()
    a = [x.compute(i) for i in range(4)]
    b = y.compute(0)
    c = [z.compute(i) for i in range(3)]
    t.edges = [(a[0], b), (a[3], c[0]), (b, c[1]), (a[3], c[2])]
    w = waits(t.program())
    assert (w[b], w[c[0]], w[c[1]], w[c[2]]) == ({a[0]}, {a[3]}, {b}, set())


def test_fork_concerns_every_page():
    t = recorded(mapping(0, A), touch(1, A), (0, "FORK", {"mm2": 1}), touch(1, A))
    t.new_mm()
    assert waits(t.program()) == {0: set(), 1: {0}, 2: {1}, 3: {2}}


def test_queries_of_the_break_keep_their_place():
    t = recorded((0, "SETBRK", {"addr": A, "new_addr": A, "result": NO_RESULT}),
                 (0, "BRK", {"addr": A + 0x1000, "result": A + 0x1000}), (1, "BRK", {"result": A + 0x1000}),
                 (0, "BRK", {"addr": A + 0x2000, "result": A + 0x2000}))
    assert waits(t.program()) == {0: set(), 1: set(), 2: {1}, 3: {2}}


# -- files on disk -----------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    t = scenario()
    t.file("data", data=b"\0\xff", dev="fe:01", ino=7)
    t.start_maps[0] = [MapsLine(0x1000, 0x2000, "r-xp", 0, "fe:01", 7, "/a b (deleted)")]
    t.notes.unknown_line("kind", 3, "text")
    t.edges.append((0, 2))
    path = tmp_path / "t.npz"
    t.save(path)
    back = Tape.load(path)
    assert back == t
    assert back.program().order.tolist() == t.program().order.tolist()
    assert back.file("data").data == b"\0\xff"
    back.thread().touch(0x1000)
    assert back != t


numbers = st.integers(0, (1 << 64) - 1)
signed = st.integers(-(1 << 31), (1 << 31) - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True), numbers, numbers, signed, signed,
                          st.binary(max_size=9), st.text(max_size=8)), max_size=8))
def test_round_trip_is_lossless(tmp_path_factory, rows):
    t = Tape(recorded=bool(len(rows) % 2))
    for time, addr, length, prot, result, data, name in rows:
        thread = t.add_thread(name=name)
        t.file(name, data=data)
        t.append("STORE", time=time, addr=addr, len=length, prot=prot, result=result, data=t.blob(data), thread=thread)
    path = tmp_path_factory.mktemp("npz") / "t.npz"
    t.save(path)
    assert Tape.load(path) == t


def _npz(path, **changes):
    t = scenario()
    t.save(path)
    with np.load(path) as box:
        arrays = {name: box[name] for name in box}
    meta = json.loads(arrays["pykmm_tape"].tobytes())
    for name, value in changes.items():
        if name in arrays:
            arrays[name] = value
        else:
            meta[name] = value
    arrays["pykmm_tape"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, **arrays)


def _ops(**fields):
    ops = copy.deepcopy(scenario().ops)
    for name, value in fields.items():
        ops[name][3] = value
    return ops


@pytest.mark.parametrize("changes", [
    {"format": 99}, {"threads": []}, {"threads": [{"wrong": 1}]}, {"edges": [[3, 1]]}, {"edges": [[0, 99]]},
    {"mms": 1}, {"ops": np.zeros(3)}, {"ops": _ops(op=77)}, {"ops": _ops(mm=5)}, {"ops": _ops(file=0)},
    {"ops": _ops(data=99)}, {"ops": _ops(addr_ref=3)}, {"ops": _ops(addr_ref=1)}, {"ops": _ops(thread=-1)},
    {"ops": _ops(phase=3)}, {"ops": _ops(access=3)}, {"ops": _ops(op=OPCODES["FORK"])},
    {"ops": _ops(op=OPCODES["STORE"])}, {"notes": {"wrong": 1}},
])
def test_damaged_npz(tmp_path, changes):
    path = tmp_path / "t.npz"
    _npz(path, **changes)
    with pytest.raises(TapeError) as caught:
        Tape.load(path)
    assert caught.value.path == str(path)


def test_files_that_are_no_tape(tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(3))
    cut = tmp_path / "cut.npz"
    scenario().save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    evil = tmp_path / "evil.npz"
    with zipfile.ZipFile(evil, "w") as box:
        buffer = io.BytesIO()
        np.save(buffer, np.array([os.getcwd], object), allow_pickle=True)
        box.writestr("pykmm_tape.npy", buffer.getvalue())
    for path in (other, cut, evil):
        with pytest.raises(TapeError) as caught:
            Tape.load(path)
        assert caught.value.path == str(path)
    with pytest.raises(FileNotFoundError):
        Tape.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        Tape.load(tmp_path)


# -- small things --------------------------------------------------------------------------------------------------


def test_summary_counts():
    s = scenario().summary()
    assert s["operations"] == 9
    assert s["by_kind"] == {"mmap": 1, "munmap": 1, "mprotect": 1, "fork": 1, "load": 3, "store": 2}
    assert s["threads"] == 3
    assert s["address_spaces"] == 2


def test_maps_lines():
    text = ["00400000-00401000 r-xp 00001000 fe:00 12   /bin/a b (deleted)\n", "\n",
            "7f00-8f00 rw-p 0 00:00 0 \n"]
    with pytest.raises(TapeError, match="impossible range") as caught:
        parse_maps(text, "some.maps")
    assert (caught.value.path, caught.value.line) == ("some.maps", 3)
    assert str(caught.value).startswith("some.maps:3: ")
    line = parse_maps(text[:1])[0]
    assert line == MapsLine(0x400000, 0x401000, "r-xp", 0x1000, "fe:00", 12, "/bin/a b (deleted)")
    assert parse_maps([str(line)]) == [line]
    for bad in ("hello", "2000-1000 r--p 0 00:00 0", "1000-2000 rwzp 0 00:00 0"):
        with pytest.raises(TapeError):
            parse_maps([bad])
    with pytest.raises(TapeError):
        parse_maps(["1000-3000 r--p 0 00:00 0", "2000-4000 r--p 0 00:00 0"])


def test_errors_tell_where():
    assert str(TapeError("bad", "f", 3)) == "f:3: bad"
    assert str(TapeError("bad")) == "bad"
    assert str(SegmentationFault(0x1000, "ACCERR")) == "segmentation fault at 0x1000 (SEGV_ACCERR)"
    with pytest.raises(ValueError, match="MAPERR"):
        SegmentationFault(0, "WHAT")
