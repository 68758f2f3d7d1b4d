# SPDX-License-Identifier: GPL-2.0-only
"""plugins/importers: recordings become tapes that can run, in every order that their waits allow.

``PYKMM_TRACES`` may name a directory of further recordings; those shipped with pykmm are always used.
"""
from __future__ import annotations

import gzip
import lzma
import os
import pathlib
import random
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pykmm.data
from pykmm.errors import TapeError
from pykmm.flags import MAP
from pykmm.plugin import get_plugin_manager
from pykmm.tape import NO_RESULT, OPCODES, Tape
from pykmm.tape_layout import Layout

SHIPPED = pathlib.Path(pykmm.data.__file__).parent
MORE = os.environ.get("PYKMM_TRACES")
TRACES = {path.name: path for folder in filter(None, (MORE, SHIPPED)) for path in
          sorted(pathlib.Path(folder).glob("*.perf-trace.txt.xz"))}
NAMES = list(OPCODES)
FIXED = MAP["MAP_FIXED"]
A = 0x7F0000000000


@pytest.fixture(scope="module", params=sorted(TRACES))
def trace(request):
    """(path, text lines, tape) of one recording."""
    path = TRACES[request.param]
    with lzma.open(path, "rt") as box:
        return path, box.read().splitlines(), Tape.load(path)


# -- a machine of mappings only: does every operation find what it needs? ------------------------------------


def birth(layout, piece, at):
    """The VMA gets an anon_vma, or its neighbour's."""
    for near in (layout.find(piece.end), layout.find(piece.start - 1)):
        if near is not None and near.anon >= 0 and near.flags == piece.flags and near.file == piece.file:
            piece.anon = near.anon
            return
    piece.anon = at


def interleave(program, seed):
    """Runs a program in a random order that respects its waits; (problems, address spaces at the end)."""
    rng = random.Random(seed)
    start, first = program.stream_start.tolist(), program.dep_start.tolist()
    stream, pos = program.dep_stream.tolist(), program.dep_pos.tolist()
    c = {name: program.ops[name].tolist() for name in program.ops.dtype.names}
    done, dead, problems = [0] * program.nstreams, set(), []
    spaces = {mm: Layout(merging=True) for mm in program.roots}
    live = list(range(program.nstreams))
    idle = 0
    while live:
        s = rng.choice(live)
        burst = rng.choice((1, 1, 3, 50, 5000))
        moved = False
        while burst and done[s] < start[s + 1] - start[s]:
            i = start[s] + done[s]
            if any(done[stream[k]] <= pos[k] for k in range(first[i], first[i + 1])):
                break
            problem = apply(c, i, spaces, dead, program)
            if problem:
                problems.append((problem, NAMES[c["op"][i]], hex(c["addr"][i]), c["source"][i]))
            done[s] += 1
            burst -= 1
            moved = True
        if done[s] == start[s + 1] - start[s]:
            live.remove(s)
        idle = 0 if moved else idle + 1
        if idle > 1000 * len(live) + 1000:
            problems.append("nothing can go on")
            break
    return problems, spaces


def apply(c, i, spaces, dead, program):
    """One operation; what is wrong with it, or None."""
    name, mm, address, result = NAMES[c["op"][i]], c["mm"][i], c["addr"][i], c["result"][i]
    length = (c["len"][i] + 4095) & ~4095
    space = spaces.get(mm)
    if space is None or mm in dead:
        return "no such address space now"
    wrong = None
    if name in ("MMAP", "MAP"):
        if name == "MMAP" and result < 0:
            return None
        if name == "MMAP" and address != result:
            wrong = "not replayed where it was"
        if not c["flags"][i] & FIXED and space.overlapping(address, address + length):
            wrong = "something is there"
        space.map(address, address + length, c["prot"][i], c["flags"][i], c["file"][i], c["offset"][i])
    elif name == "MUNMAP" and result == 0:
        if not space.overlapping(address, address + length):
            wrong = "nothing is there"
        space.unmap(address, address + length)
    elif name in ("MPROTECT", "MREMAP") and result >= 0:
        if not space.covered(address, address + length):
            wrong = "a hole"
        if name == "MPROTECT":
            space.protect(address, address + length, c["prot"][i])
        else:
            space.remap(address, length, result, (c["new_len"][i] + 4095) & ~4095, c["flags"][i])
    elif name == "SETBRK":
        space.start_brk, space.brk = address, c["new_addr"][i]
    elif name == "BRK" and result > 0:
        if (address or space.brk) != result:
            wrong = "another break"
        space.set_brk(result)
    elif name == "TOUCH":
        piece = space.find(address) or space.grows_to(address)
        if piece is None:
            return "nothing is there"
        access = c["access"][i]
        if not piece.prot & (1, 2, 4)[access]:
            wrong = "not allowed"
        if access == 1 and piece.anon < 0 and not piece.shared:
            birth(space, piece, int(program.order[i]))
    elif name == "FORK":
        spaces[c["mm2"][i]] = space.copy()
    elif name == "EXEC":
        spaces[c["mm2"][i]] = Layout(merging=True)
    elif name == "EXIT":
        dead.add(mm)
    return wrong


def areas(rows):
    """Ranges with equal properties, joined: [(start, end, perms, offset, has a file)]."""
    joined = []
    for start, end, perms, offset, file in sorted(rows):
        last = joined[-1] if joined else None
        if last and last[1] == start and last[2] == perms and last[4] == file and (
                not file or last[3] + start - last[0] == offset):
            joined[-1] = (last[0], end, *last[2:])
        else:
            joined.append((start, end, perms, offset, file))
    return joined


def of_layout(layout):
    return areas((p.start, p.end, "".join(x if p.prot >> i & 1 else "-" for i, x in enumerate("rwx"))
                  + "ps"[p.shared], p.offset if p.file >= 0 else 0, p.file >= 0) for p in layout)


def of_maps(lines):
    return areas((x.start, x.end, x.perms, x.offset if x.ino else 0, bool(x.ino)) for x in lines if x.end < 1 << 56)


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


# -- perf trace, line by line --------------------------------------------------------------------------------


def perf(tmp_path, text, name="t.perf-trace.txt", **maps):
    path = tmp_path / name
    path.write_text(text)
    for which, content in maps.items():
        (tmp_path / f"t.{which}-maps.txt").write_text(content)
    return Tape.load(path)


def calls(tape):
    return [(NAMES[o["op"]], int(o["addr"]), int(o["len"]), int(o["source"])) for o in tape.ops
            if NAMES[o["op"]] not in ("NOP",)]


START = """\
00400000-00401000 r-xp 00000000 fe:00 5   /bin/prog
00401000-00403000 rw-p 00001000 fe:00 5   /bin/prog
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
"""
EXEC = "     0.100 ( 0.100 ms): prog/10 execve(filename: 0x1, argv: 0x2, envp: 0x3) = 0\n"


def test_perf_start_maps_offsets_and_access(tmp_path):
    tape = perf(tmp_path, EXEC + """\
     0.150 ( 0.000 ms): prog/10 minfault [elf_load+0x1] => 0x402000 (?k)
     1.000 ( 0.000 ms): prog/10 minfault [_start+0x0] => /bin/prog@0x10 (d.)
     1.100 ( 0.000 ms): prog/10 minfault [operator=> [x]+0x0] => /bin/prog@0x1010 (d.)
     1.200 ( 0.000 ms): prog/10 majfault [main+0x0] => /bin/prog@0x1018 (d.)
     1.300 ( 0.000 ms): prog/10 minfault [main+0x0] => [stack]@0x7ffbfffffff8 (d.)
     1.400 ( 0.010 ms): prog/10 brk()                             = 0x500000
     1.500 ( 0.010 ms): prog/10 brk(brk: 0x502000)                = 0x502000
     1.600 ( 0.000 ms): prog/10 minfault [main+0x0] => [heap]@0x501008 (d.)
     1.700 (         ): prog/10 exit_group()                      = ?
""", start=START, end="00400000-00401000 r-xp 00000000 fe:00 5 /bin/prog\n")
    touches = tape.ops[tape.ops["op"] == OPCODES["TOUCH"]]
    assert touches["addr"].tolist() == [0x402000, 0x400010, 0x401010, 0x401018, 0x7FFBFFFFFFF8, 0x501008]
    assert touches["access"].tolist() == [1, 2, 0, 1, 1, 1]
    assert tape.notes.faults == {"minor": 5, "major": 1}
    assert [x[1] for x in calls(tape) if x[0] == "MAP"] == [0x400000, 0x401000, 0x7FFC00000000]
    assert tape.ops["source"].tolist()[0] in (0, 1)
    assert len(tape.end_maps[0]) == 1
    assert [f.name for f in tape.files] == ["/bin/prog"]
    assert not tape.notes.assumed
    assert not interleave(tape.program(), 1)[0]


def test_perf_file_where_another_one_ends_up(tmp_path):
    """The end maps name who has the address in the end; a file that had it before is still known by its faults."""
    tape = perf(tmp_path, EXEC + """\
     1.000 ( 0.010 ms): prog/10 mmap(len: 8192, prot: READ, flags: PRIVATE, fd: 3) = 0x7f0000000000
     1.100 ( 0.000 ms): prog/10 minfault [f+0x0] => /etc/ld.so.cache@0x8 (d.)
     1.200 ( 0.010 ms): prog/10 munmap(addr: 0x7f0000000000, len: 8192) = 0
     1.300 ( 0.010 ms): prog/10 mmap(len: 8192, prot: READ, flags: PRIVATE, fd: 3) = 0x7f0000000000
     1.400 ( 0.000 ms): prog/10 minfault [f+0x0] => /lib/locale@0x1008 (d.)
""", start=START, end="7f0000000000-7f0000002000 r--p 00000000 fe:00 7 /lib/locale\n")
    assert not tape.notes.assumed
    touches = tape.ops[tape.ops["op"] == OPCODES["TOUCH"]]
    assert touches["addr"].tolist() == [0x7F0000000008, 0x7F0000001008]
    assert [f.name for f in tape.files] == ["/bin/prog", "/etc/ld.so.cache", "/lib/locale"]


def test_perf_memory_of_a_jit(tmp_path):
    """perf looks for symbols of anonymous code in /tmp/perf-PID.map and prints that name with an address."""
    tape = perf(tmp_path, EXEC + """\
     1.000 ( 0.010 ms): prog/10 mmap(len: 8192, prot: READ|WRITE|EXEC, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     1.100 ( 0.000 ms): prog/10 minfault [f+0x0] => /tmp/perf-10.map@0x7f0000001030 (d.)
""", start=START)
    assert not tape.notes.assumed
    assert tape.ops["addr"].tolist()[-1] == 0x7F0000001030


def test_perf_split_calls_odd_names_and_lines_out_of_order(tmp_path):
    tape = perf(tmp_path, """\
     2.000 ( 5.000 ms): Web Co/nt: 7/11  ... [continued]: mmap())              = 0x7f0000000000
     2.000 (         ): Web Co/nt: 7/11 mmap(len: 8192, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) ...
     8.000 ( 0.000 ms): :11/11 minfault [f+0x0] => 0x7f0000000010 (?.)
     7.500 ( 0.000 ms): Web Co/nt: 7/11 minfault [[unknown]+0x0] => //anon@0x7f0000001010 (d.)
     9.000 (         ): Web Co/nt: 7/11 munmap(addr: 0x7f0000000000, len: 8192) ...
    10.000 ( 0.010 ms): Web Co/nt: 7/11 mprotect(start: 0x1001, len: 1) = -1 EINVAL (Invalid argument)
""")
    assert [x[0] for x in calls(tape)] == ["MMAP", "TOUCH", "TOUCH", "MUNMAP", "MPROTECT"]
    assert tape.ops["addr"][tape.ops["op"] == OPCODES["TOUCH"]].tolist() == [A + 0x1010, A + 0x10]
    assert tape.threads[0].name == "Web Co/nt: 7"
    assert tape.ops["result"][-1] == -22
    assert any("end is not recorded, taken as successful: first munmap at line 5" in x for x in tape.notes.remarks)


def test_perf_of_one_thread_without_its_name(tmp_path):
    tape = perf(tmp_path, """\
     1.000 ( 0.010 ms): mmap(len: 4096, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     1.100 ( 0.000 ms): minfault [f+0x0] => //anon@0x7f0000000010 (d.)
""")
    assert [x[:2] for x in calls(tape)] == [("MMAP", A), ("TOUCH", A + 0x10)]


def test_perf_ends_joined_to_the_wrong_beginning(tmp_path):
    """An end earlier than its beginning belongs to the call before it."""
    tape = perf(tmp_path, f"""\
     1.000 (         ): p/11 mmap(len: 8, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) ...
     2.000 ({(2**64 - 500_000) / 1e6:.3f} ms): p/11 munmap(addr: 0x7f0000000000, len: 8) = 0x7f0000000000
     3.000 ( 0.010 ms): p/11 brk() = 0x555500000000
""")
    assert [x[:3] for x in calls(tape)] == [("MMAP", A, 8), ("MUNMAP", A, 8), ("SETBRK", 0x555500000000, 0),
                                            ("BRK", 0, 0)]
    assert tape.ops["time"][1] == pytest.approx(1.5e-3)


def test_perf_mmap_waits_for_the_munmap_that_frees_its_addresses(tmp_path):
    tape = perf(tmp_path, EXEC + """\
     1.000 ( 0.010 ms): p/10 mmap(len: 4096, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     1.100 ( 0.010 ms): p/10 clone3(uargs: 0x1, size: 88) = 11
         ? (         ): p/11  ... [continued]: clone3()) = 0
     2.000 ( 0.500 ms): p/11 mmap(len: 4096, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     2.501 ( 0.900 ms): p/10 munmap(addr: 0x7f0000000000, len: 4096) = 0
     3.600 ( 0.000 ms): p/11 minfault [f+0x0] => //anon@0x7f0000000000 (d.)
""", start=START)
    assert [x[0] for x in calls(tape)][-4:] == ["MMAP", "MUNMAP", "MMAP", "TOUCH"]
    assert tape.mms == 1
    for seed in range(5):
        assert not interleave(tape.program(), seed)[0]


def test_perf_processes(tmp_path):
    tape = perf(tmp_path, EXEC + """\
     1.000 ( 0.010 ms): p/10 mmap(len: 4096, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     2.000 ( 0.100 ms): p/10 clone(clone_flags: CHILD_CLEARTID|CHILD_SETTID|0x11, child_tidptr: 0x7f) = 11 (p)
         ? (         ): p/11  ... [continued]: clone()) =
     3.000 ( 0.000 ms): p/11 minfault [f+0x0] => //anon@0x7f0000000000 (d.)
     3.100 ( 0.020 ms): p/11 execve(filename: 0x1, argv: 0x2, envp: 0x3) = -1 ENOENT (No such file or directory)
     3.210 ( 0.000 ms): p/11 minfault [elf_load+0x0] => 0x601000 (?k)
     3.200 ( 0.090 ms): ls/11 execve(filename: 0x1, argv: 0x2, envp: 0x3) = 0
     3.400 ( 0.000 ms): ls/11 minfault [_start+0x0] => /lib/ld.so@0x1000 (d.)
     3.500 ( 0.000 ms): ls/11 minfault [_start+0x0] => /lib/ld.so@0x5000 (d.)
     3.600 ( 0.000 ms): ls/11 minfault [_start+0x0] => /lib/ld.so@0x5008 (d.)
     3.700 ( 0.010 ms): ls/11 mprotect(start: 0x7f1000000000, len: 4096, prot: READ) = 0
     3.800 (         ): ls/11 exit_group() = ?
     4.000 ( 0.000 ms): p/10 minfault [f+0x0] => //anon@0x7f0000000000 (d.)
""", start=START)
    ops = tape.ops
    names = [NAMES[op] for op in ops["op"]]
    assert tape.mms == 3
    assert names.count("FORK") == names.count("EXEC") == 1
    exits = ops[ops["op"] == OPCODES["EXIT"]]
    assert exits["mm"].tolist() == [1, 2]           # the forked copy when it execs, the image when it exits
    assert tape.notes.assumed == {"(anonymous)": 2, "/lib/ld.so": 2}
    assumed = ops[(ops["op"] == OPCODES["MAP"]) & (ops["mm"] == 2)]
    assert sorted(zip(assumed["prot"].tolist(), assumed["len"].tolist(), assumed["offset"].tolist(), strict=True)) == [
        (3, 4096, 0), (3, 4096, 0), (3, 4096, 0x5000), (5, 0x4000, 0x1000)]
    for seed in range(3):
        assert not interleave(tape.program(), seed)[0]


def test_perf_unknown_things_are_counted_and_reported(tmp_path):
    tape = perf(tmp_path, EXEC + """\
what is this
     1.000 ( 0.010 ms): p/10 shmat(shmid: 1) = 0x7f0000000000
     1.100 ( 0.010 ms): p/10 mmap(len: 4096, prot: READ|WEIRD, flags: PRIVATE|ANONYMOUS) = 0x7f0000000000
     1.200 ( 0.010 ms): p/10 mmap(len: 4096, prot: READ, flags: PRIVATE|ANONYMOUS) = -12 ENOMEM
""")
    assert tape.notes.unknown == {"not a line of perf trace": 1, "system call shmat is not replayed": 1,
                                  "arguments of mmap not understood (unknown PROT_* flag 'WEIRD')": 1}
    assert tape.notes.examples["not a line of perf trace"] == "line 2: what is this"
    assert tape.summary()["unknown_lines"] == 3
    assert any("kept as no-ops" in x for x in tape.notes.remarks)


@pytest.mark.parametrize(("line", "what"), [
    ("munmap(addr: 0x7f0000001001, len: 4096) = 0", "page-aligned"),
    ("munmap(addr: 0xffff800000000000, len: 4096) = 0", "user address"),
    ("munmap(addr: 0x7f0000001000) = 0", "length 0"),
    ("mmap(len: 4096, prot: READ, flags: PRIVATE|ANONYMOUS) = 0", "result 0"),
    ("mmap(len: 4096, prot: READ, flags: PRIVATE|ANONYMOUS) = 0x7f0000001001", "page-aligned"),
    ("mmap(addr: 0x7f0000000000, len: 4096, prot: READ, flags: PRIVATE|FIXED|ANONYMOUS) = 0x7f0000001000", "FIXED"),
    ("mmap(len: 99999999999999999999999, prot: READ, flags: PRIVATE|ANONYMOUS) = 0x7f0000001000", "length"),
    ("mprotect(start: 0x7f0000001001, len: 4096, prot: READ) = 0", "page-aligned"),
    ("brk(brk: 0x1000) = 0xffffffffff000000", "result"),
    ("mremap(addr: 0x7f0000001000, old_len: 4096, new_len: 0) = 0x7f0000001000", "length 0"),
    ("minfault [x] => /lib/x@0xffffffffffffff (d.)", "offset"),
])
def test_perf_impossible_operations(tmp_path, line, what):
    with pytest.raises(TapeError, match=what) as caught:
        perf(tmp_path, EXEC + f"     1.000 ( 0.010 ms): p/10 {line}\n")
    assert caught.value.line == 2
    assert caught.value.path == str(tmp_path / "t.perf-trace.txt")


# -- strace --------------------------------------------------------------------------------------------------


BODY = """\
execve("./x", ["x"], 0x7ff0 /* 3 vars */) = 0
brk(NULL) = 0x555500000000
openat(AT_FDCWD, "/lib/a, b.so", O_RDONLY|O_CLOEXEC) = 3
mmap(NULL, 8192, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_DENYWRITE, 3, 0x1000) = 0x7f0000000000
close(3) = 0
mremap(0x7f0000000000, 8192, 16384, MREMAP_MAYMOVE) = 0x7f0000010000
madvise(0x7f0000010000, 4096, MADV_DONTNEED) = 0
--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED} ---
munmap(0x1, 4096) = -1 EINVAL (Invalid argument)
exit_group(0) = ?
+++ exited with 0 +++
"""


def strace(tmp_path, text):
    path = tmp_path / "t.strace"
    path.write_text(text)
    return Tape.load(path)


@pytest.mark.parametrize("prefix", ["", "123 ", "123   07:49:11 ", "[pid   123] 07:49:11.123456 ",
                                    "1700000000.123456 ", "     0.000123 ", "123 1700000000.5 "])
@pytest.mark.parametrize("suffix", ["", " <0.000012>"])
def test_strace_forms(tmp_path, prefix, suffix):
    lines = [prefix + line + (suffix if " = " in line and "?" not in line else "") for line in BODY.splitlines()]
    tape = strace(tmp_path, "\n".join(lines) + "\n")
    assert tape.importer == "strace"
    assert [x[0] for x in calls(tape)] == ["SETBRK", "BRK", "MMAP", "MREMAP", "MADVISE", "MUNMAP"]
    assert tape.files[0].name == "/lib/a, b.so"
    assert not tape.notes.unknown
    moved = tape.ops[tape.ops["op"] == OPCODES["MREMAP"]][0]
    assert (moved["new_addr"], moved["new_len"], moved["flags"]) == (0x7F0000010000, 16384, 3)
    first = tape.ops["time"][tape.ops["op"] == OPCODES["MMAP"]][0]
    assert np.isnan(first) == (":" not in prefix and "." not in prefix)
    assert any("no page faults" in x for x in tape.notes.remarks)


def test_strace_threads_and_unfinished_calls(tmp_path):
    tape = strace(tmp_path, """\
10 execve("./x", ["x"], 0x7ff0 /* 3 vars */) = 0
10 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000
10 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SETTLS, stack=0x7f} <unfinished ...>
11 mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, 7</dev/zero>, 0 <unfinished ...>
10 <... clone3 resumed> => {parent_tid=[11]}, 88) = 11
10 munmap(0x7f0000000000, 4096 <unfinished ...>
11 <... mmap resumed>) = 0x7f0000000000
10 <... munmap resumed>) = 0
10 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 12
12 munmap(0x7f0000000000, 4096) = 0
12 exit_group(0) = ?
12 +++ exited with 0 +++
11 exit(0) = ?
11 futex(0x7f, FUTEX_WAIT <unfinished ...>
11 shmat(1, NULL, 0) = 0x7f0000800000
""")
    assert [x[0] for x in calls(tape)] == ["MMAP", "MUNMAP", "MMAP", "FORK", "MUNMAP", "EXIT"]
    assert tape.mms == 2
    assert [(t.pid, t.tid) for t in tape.threads] == [(10, 10), (10, 11), (12, 12)]
    assert tape.notes.unknown == {"system call shmat is not replayed": 1}
    for seed in range(3):
        assert not interleave(tape.program(), seed)[0]


def test_strace_impossible(tmp_path):
    with pytest.raises(TapeError, match="page-aligned") as caught:
        strace(tmp_path, BODY + "munmap(0x7f0000001001, 4096) = 0\n")
    assert caught.value.line == 12


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_of_a_real_program(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "real.strace"
    code = "import threading; [threading.Thread(target=bytearray, args=(1 << 20,)).start() for _ in range(2)]"
    done = subprocess.run(["strace", "-f", "-y", "-o", path, sys.executable, "-c", code], capture_output=True,
                          check=False)
    if done.returncode:
        pytest.skip("strace may not trace here")
    tape = Tape.load(path)
    assert not tape.notes.unknown
    assert len(tape.threads) == 3
    assert not interleave(tape.program(), 7)[0]


def test_mbind_keeps_its_mode(tmp_path):
    """Failures are kept as no-ops: the mask that may have caused them is not part of a tape."""
    lines = """\
mbind(0x7f0000010000, 4096, MPOL_BIND|MPOL_F_STATIC_NODES, [0x00000000000001], 64, 0) = 0
mbind(0x7f0000010000, 4096, 0x6 /* MPOL_??? */, [0x00000000000001], 64, MPOL_MF_STRICT|MPOL_MF_MOVE) = 0
mbind(0x7f0000010000, 4096, MPOL_DEFAULT, NULL, 0, 0) = 0
mbind(0x7f0000010000, 4096, MPOL_BIND, [0x00000000000002], 64, 0) = -1 EINVAL (Invalid argument)
munmap(0x1"""
    tape = strace(tmp_path, BODY.replace("munmap(0x1", lines))
    assert not tape.notes.unknown
    flags = tape.ops["flags"][tape.ops["op"] == OPCODES["MBIND"]]
    assert flags.tolist() == [0x8002, 6, 0]


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
