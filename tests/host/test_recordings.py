# SPDX-License-Identifier: GPL-2.0-only
"""The recordings that come with pykmm, as real system calls: the same answers, and the same maps at the end."""
from __future__ import annotations

import pathlib

import numpy as np
import pytest

import pykmm.data
from pykmm.tape import NO_RESULT, OPCODES, Tape
from pykmm_ext.engine import host

pytestmark = pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
RECORDINGS = sorted(pathlib.Path(next(iter(pykmm.data.__path__))).glob("*.perf-trace.txt.xz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.partition(".")[0])
def test_a_recording_ends_with_its_recorded_maps(path: pathlib.Path) -> None:
    tape = Tape.load(path)
    program = tape.program()
    ops = program.ops
    result = host.run(program, timeout=120)
    known = (ops["result"] != NO_RESULT) & (ops["op"] != OPCODES["NOP"])
    expected = np.where(known & (ops["result"] < 0) & (ops["result"] >= -4095), -ops["result"], 0)
    wrong = np.nonzero(result.errno != expected)[0]
    assert [(int(i), int(ops["source"][i]), int(result.errno[i])) for i in wrong] == []
    addresses = known & np.isin(ops["op"], [OPCODES[name] for name in ("MMAP", "MREMAP", "BRK")]) & (ops["result"] > 0)
    assert result.result[addresses].tolist() == ops["result"][addresses].tolist()
    assert tape.end_maps
    for mm, lines in tape.end_maps.items():
        recorded = [(m.start, m.end, m.perms, m.offset, m.name) for m in lines if m.name != "[vsyscall]"]
        assert [(m.start, m.end, m.perms, m.offset, m.name) for m in result.maps[mm]] == recorded
    touched = int(np.count_nonzero(ops["op"] == OPCODES["TOUCH"]))
    assert int(result.minor_faults.sum()) >= 0.9 * touched
