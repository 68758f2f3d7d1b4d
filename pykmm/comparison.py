# SPDX-License-Identifier: GPL-2.0-only
"""The same tape under several strategies, engines and arches, side by side."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pykmm.machine import Machine, RunResult, check_names, memory_needed, parse_size, run_host

if TYPE_CHECKING:
    from pykmm.tape import Tape

__all__ = ["Comparison", "Row", "compare"]


@dataclass
class Row:
    """One strategy on one engine: the fastest of its runs."""

    strategy: str
    engine: str
    arch: str
    elapsed: float              #: seconds
    ratio: float                #: elapsed / that of the first row
    faults: int
    faults_per_s: float
    counters: dict[str, int]
    times: list[float]          #: seconds of every run
    result: RunResult = field(repr=False)


@dataclass
class Comparison:
    """What compare() measured."""

    tape: Tape = field(repr=False)
    rows: list[Row]

    @property
    def maps_ok(self) -> bool:
        """Whether every row ended with the recorded maps (true when none were recorded)."""
        return not any(row.result.maps_diff() for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, in plain types."""
        from pykmm.report import note_lines, run_json

        return {
            "trace": self.tape.source, "importer": self.tape.importer, "summary": self.tape.summary(),
            "recorded_faults": dict(self.tape.notes.faults), "notes": note_lines(self.tape.notes),
            "rows": [{"strategy": row.strategy, "engine": row.engine, "arch": row.arch, "elapsed_s": row.elapsed,
                      "ratio": row.ratio, "faults": row.faults, "faults_per_s": row.faults_per_s,
                      "counters": row.counters, "times_s": row.times, "run": run_json(row.result)}
                     for row in self.rows],
            "maps_ok": self.maps_ok,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """to_dict() as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from pykmm.report import comparison_table

        out = StringIO()
        Console(file=out, width=160).print(comparison_table(self))
        return out.getvalue()


def compare(tape: Tape, strategies: Sequence[str] = ("mmap_sem", "spf"), engines: Sequence[str] = ("native",),
            arches: Sequence[str] = ("x86",), *, cpus: int | None = None, memory: str | int | None = None,
            repeats: int = 1, progress: Callable[[str], None] | None = None) -> Comparison:
    """Run `tape` under each strategy and arch on the native engine, and once on the host engine if that is asked for.

    :param cpus: simulated CPUs of each machine; as many as the tape needs if not given
    :param memory: of each machine, like "1G"; as much as the tape needs if not given
    :param repeats: runs per row; a row shows the fastest
    :param progress: called with a few words before each run

    The tape is run once before the first row and not shown: the first run of a process is slower, whatever its strategy
    (memory that the process has not used yet, code that is not in the caches).
    Rows come in the order of `engines`; ratios are times relative to the first row. ValueError: unknown names.
    """
    strategies = check_names("strategy", strategies)
    arches = check_names("arch", arches)
    engines = check_names("engine", engines)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    size = memory_needed(tape) if memory is None else parse_size(memory)
    count = tape.program().nstreams if cpus is None else cpus
    plan: list[tuple[str, str, str]] = []
    for engine in engines:
        if engine == "host":
            plan.append(("linux", "host", ""))
        else:
            plan += [(strategy, engine, arch) for arch in arches for strategy in strategies]
    rows: list[Row] = []
    warm_up = next((row for row in plan if row[1] == "native"), None)
    if warm_up is not None:
        if progress is not None:
            progress("warm-up")
        with Machine(arch=warm_up[2], strategy=warm_up[0], cpus=count, memory=size) as machine:
            machine.run(tape, "native")
    for strategy, engine, arch in plan:
        runs: list[RunResult] = []
        for turn in range(repeats):
            if progress is not None:
                progress(f"{strategy} on {engine}" + (f", run {turn + 1} of {repeats}" if repeats > 1 else ""))
            if engine == "host":
                runs.append(run_host(tape))
            else:
                with Machine(arch=arch, strategy=strategy, cpus=count, memory=size) as machine:
                    runs.append(machine.run(tape, engine))
                    machine.validate()
        best = min(runs, key=lambda run: run.elapsed)
        first = rows[0].elapsed if rows else best.elapsed
        rows.append(Row(strategy, engine, best.arch, best.elapsed, best.elapsed / first if first else 1.0, best.faults,
                        best.faults_per_s, best.counters, [run.elapsed for run in runs], best))
    return Comparison(tape, rows)
