# SPDX-License-Identifier: GPL-2.0-only
"""How long a tape is for the check engine, which keeps every step of an execution, and what memory it takes there."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.checking.schedule import DEFAULT_STEPS
from pykmm.machine import page_size, table_frames

if TYPE_CHECKING:
    from pykmm.tape import Tape

__all__ = ["LONGEST", "check_length", "memory_for", "steps_for"]

#: Steps of an execution of the longest tape: some seconds.
LONGEST = 300_000
#: Steps that an operation takes, about; an access to a page that faults; and one that pins.
_OPERATION, _FAULT, _PIN = 10, 45, 10
#: Frames of a Cpu beside what its operations take.
_SPARE = 64


def _length(tape: Tape, arch: str) -> tuple[int, int, int]:
    """Operations of a tape, pages that they access, and about how many steps that is."""
    import numpy as np

    from pykmm.tape import OPCODES

    ops = tape.ops
    shift = np.uint64(page_size(arch).bit_length() - 1)
    pages = np.clip(ops["len"] >> shift, np.uint64(1), np.uint64(1 << 30))
    populate = (ops["op"] == OPCODES["MMAP"]) & ((ops["flags"] & (0x8000 | 0x2000)) != 0)
    touch = np.isin(ops["op"], [OPCODES[name] for name in ("TOUCH", "LOAD", "STORE")]) | populate
    faults = int(pages[touch].sum())
    pins = int(pages[ops["op"] == OPCODES["PIN"]].sum())
    return len(ops), faults + pins, _OPERATION * len(ops) + _FAULT * faults + _PIN * pins


def check_length(tape: Tape, arch: str) -> None:
    """ValueError where `tape` is too long for the check engine: how long it is, and what makes it shorter."""
    from pykmm.plugin import get_plugin_manager, split_options
    from pykmm.workload import parameters

    operations, pages, steps = _length(tape, arch)
    if steps <= LONGEST:
        return
    advice = "make it smaller"
    workloads = get_plugin_manager().workloads
    name = split_options(tape.source)[0] if tape.work is not None and tape.source else ""
    if name in workloads:
        known = parameters(workloads.entry(name).factory)
        sizes = [f"{key}={value}" for key, value in known.items()
                 if key in ("size", "iterations", "requests", "records", "pages", "pairs", "reads")]
        if sizes:
            advice += f" with its parameters ({name} has {', '.join(sizes)})"
    raise ValueError(f"{tape.source or 'the tape'} is too long for the check engine: {operations:,} operations with "
                     f"{pages:,} accesses to pages are about {steps:,} steps, and it takes {LONGEST:,}; {advice}")


def steps_for(tape: Tape, arch: str) -> int:
    """Steps of an execution after which it is a livelock, and not just long."""
    return max(DEFAULT_STEPS, 4 * _length(tape, arch)[2])


def memory_for(tape: Tape, arch: str, cpus: int) -> int:
    """Bytes with which a tape runs on the check engine: every CPU has a share, and gets no frame back that it freed."""
    import numpy as np

    from pykmm.tape import OPCODES

    upper, path = table_frames(arch)
    operations, pages, _ = _length(tape, arch)
    forks = int(np.count_nonzero(np.isin(tape.ops["op"], [OPCODES["FORK"], OPCODES["EXEC"]])))
    share = _SPARE + (2 + path) * (operations + pages) + (upper + path) * (1 + forks)
    return page_size(arch) * share * (cpus + 1)
