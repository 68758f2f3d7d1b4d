# SPDX-License-Identifier: GPL-2.0-only
"""plugins/importers/strace.py: the text of ``strace -f``."""
from __future__ import annotations

import shutil

import numpy as np
import pytest
from mapping_machine import interleave
from recordings import calls

from pykmm.errors import TapeError
from pykmm.tape import OPCODES, Tape

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
