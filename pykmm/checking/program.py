# SPDX-License-Identifier: GPL-2.0-only
"""Tapes as programs of the check engine."""
from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pykmm.checking.tape_setup import watched_setup
from pykmm.machine import check_pages, closing_execs, device_numbers, page_size, parse_size
from pykmm.plugin import get_plugin_manager

if TYPE_CHECKING:
    from pykmm.tape import Tape
    from pykmm.tape_program import TapeProgram
    from pykmm_ext.arch import Arch
    from pykmm_ext.engine.check_tape import TapeCheck
    from pykmm_ext.strategy import Strategy

__all__ = ["make_program"]


def make_program(tape: Tape, strategy: str | Strategy = "spf", arch: str | Arch = "x86", cpus: int | None = None,
                 memory: str | int = "4M", quirks: Iterable[str] = (), *, fault_around: str | int = 0) -> TapeCheck:
    """`tape` as something that :class:`pykmm_ext.engine.check.Exploration` explores: every stream is a virtual CPU.

    :param strategy: name of a fault strategy, or a Strategy object
    :param arch: name of an arch backend, or an Arch object
    :param cpus: simulated CPUs; None: as many as the tape needs
    :param memory: simulated memory, shared out among the CPUs; an execution never gets a freed frame back
    :param quirks: names of :data:`pykmm_ext.binding.QUIRKS`
    :param fault_around: bytes mapped around a read fault of a file; at most one page = off

    ValueError: an unknown name, more than 16 threads. TapeError: a malformed tape. MemoryError: setup
    does not fit into `memory`. PluginError: setup does not come to its end in a strategy's Python code.
    """
    import numpy as np

    from pykmm.checking.tape_check import WatchedTapeCheck
    from pykmm_ext.binding import QUIRKS
    from pykmm_ext.engine.tape_ops import TapeArrays
    from pykmm_ext.pystrategy import PythonStrategy

    bits = 0
    for quirk in quirks:
        if quirk not in QUIRKS:
            raise ValueError(f"unknown quirk {quirk!r}; known: {', '.join(QUIRKS)}")
        bits |= QUIRKS[quirk]
    program = tape.program()
    manager = get_plugin_manager()
    made_arch = manager.arches.make(arch) if isinstance(arch, str) else arch
    made_strategy = manager.strategies.make(strategy) if isinstance(strategy, str) else strategy
    check_pages(tape, page_size(made_arch), made_arch.name)
    n = len(program)
    arrays = TapeArrays(
        np.ascontiguousarray(program.ops).view(np.uint8), program.stream_start, program.dep_start, program.dep_stream,
        program.dep_pos, np.zeros(n, np.uint8), closing_execs(program), np.zeros(n, np.int64), np.zeros(n, np.uint8),
        None, program.roots, program.mms,
        [(f.name, f.data, f.size, device_numbers(f.dev), f.ino) for f in program.files],
        [blob + b"\0" for blob in program.blobs], [len(blob) for blob in program.blobs], tape.recorded)
    made = WatchedTapeCheck
    if isinstance(made_strategy, PythonStrategy):
        from pykmm.checking.python_tape import PythonTapeCheck

        made = PythonTapeCheck
    return watched_setup(functools.partial(
        made, arrays, made_arch, made_strategy, cpus=program.nstreams if cpus is None else cpus,
        memory=parse_size(memory), labels=_labels(program), quirks=bits, fault_around=parse_size(fault_around)),
        made_strategy.name)


def _labels(program: TapeProgram) -> list[bytes]:
    """What reports call each operation: "Cpu 1's munmap (operation 3)"."""
    from pykmm.tape import OPCODE_NAMES

    labels = []
    for stream in range(program.nstreams):
        for i in range(int(program.stream_start[stream]), int(program.stream_start[stream + 1])):
            name = OPCODE_NAMES[int(program.ops["op"][i])].lower()
            who = ("setup's", f"Cpu {stream}'s", "final")[int(program.ops["phase"][i])]
            labels.append(f"{who} {name} (operation {int(program.order[i])})".encode())
    return labels
