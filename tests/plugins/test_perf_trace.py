# SPDX-License-Identifier: GPL-2.0-only
"""plugins/importers/perf_trace.py: the text of ``perf trace``, line by line."""
from __future__ import annotations

import pytest
from mapping_machine import interleave
from recordings import EXEC, NAMES, A, calls, perf

from pykmm.errors import TapeError
from pykmm.tape import OPCODES

START = """\
00400000-00401000 r-xp 00000000 fe:00 5   /bin/prog
00401000-00403000 rw-p 00001000 fe:00 5   /bin/prog
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
"""


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
