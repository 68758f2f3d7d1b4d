# SPDX-License-Identifier: GPL-2.0-only
"""Recordings replayed: each ends with its recorded maps, and every recorded system call gives what it gave.

The environment variable PYKMM_TRACES names a directory with more recordings (NAME.perf-trace.txt.xz and its maps).
"""
from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

import pykmm
from pykmm.machine import memory_needed

DATA = Path(str(files("pykmm.data")))
MORE = os.environ.get("PYKMM_TRACES")
TRACES = sorted(DATA.glob("*.perf-trace.txt.xz")) + (sorted(Path(MORE).glob("*.perf-trace.txt*")) if MORE else [])


@cache
def load(path: Path) -> pykmm.Tape:
    return pykmm.Tape.load(path)


def test_a_recording_is_shipped() -> None:
    assert any(path.name == "python-threads.perf-trace.txt.xz" for path in TRACES)
    assert all(path.stat().st_size < 100_000 for path in DATA.iterdir() if path.is_file())


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021"])
@pytest.mark.parametrize("path", TRACES, ids=[path.name.split(".")[0] + ("" if path.parent == DATA else "-more")
                                              for path in TRACES])
def test_ends_with_the_recorded_maps(path: Path, strategy: str) -> None:
    tape = load(path)
    assert tape.end_maps or path.parent != DATA, "no end maps beside the recording"
    with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory=memory_needed(tape)) as machine:
        result = machine.run(tape)
        machine.validate()
    assert result.maps_diff() == []
    assert result.mismatch_count == 0, "\n".join(result.mismatches)
    # As many faults as the recording took, give or take what the host did otherwise (fault-around, huge pages).
    recorded = sum(result.recorded.values())
    assert recorded * 0.95 <= result.faults <= recorded * 1.05
    if strategy == "mmap_sem":
        assert result.counters["attempts"] == result.faults
    else:
        assert result.counters["speculative"] + result.counters["retried"] == result.counters["attempts"]
        assert result.counters["speculative"] > 0


def test_a_difference_is_shown() -> None:
    """One end-map line changed: the diff names that line and nothing else."""
    tape = pykmm.Tape.load(DATA / "gcc-hello.perf-trace.txt.xz")
    lines = tape.end_maps[tape.main_mm]
    victim = next(line for line in lines if line.perms == "rw-p")
    lines[lines.index(victim)] = type(victim)(victim.start, victim.end, "r--p", victim.offset, victim.dev, victim.ino,
                                              victim.name)
    with pykmm.Machine(cpus=tape.program().nstreams) as machine:
        diff = machine.run(tape).maps_diff()
    changed = [line for line in diff if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert len(changed) == 2
    assert f"{victim.start:012x}-{victim.end:012x} r--p" in changed[0]
    assert f"{victim.start:012x}-{victim.end:012x} rw-p" in changed[1]
