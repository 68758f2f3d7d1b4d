# SPDX-License-Identifier: GPL-2.0-only
"""Recordings made up line by line, as files."""
from __future__ import annotations

from pykmm.tape import OPCODES, Tape

A = 0x7F0000000000
NAMES = list(OPCODES)
EXEC = "     0.100 ( 0.100 ms): prog/10 execve(filename: 0x1, argv: 0x2, envp: 0x3) = 0\n"


def perf(tmp_path, text, name="t.perf-trace.txt", **maps):
    path = tmp_path / name
    path.write_text(text)
    for which, content in maps.items():
        (tmp_path / f"t.{which}-maps.txt").write_text(content)
    return Tape.load(path)


def calls(tape):
    return [(NAMES[o["op"]], int(o["addr"]), int(o["len"]), int(o["source"])) for o in tape.ops
            if NAMES[o["op"]] not in ("NOP",)]
