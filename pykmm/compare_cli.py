# SPDX-License-Identifier: GPL-2.0-only
"""``pykmm compare``. Importing this is cheap: the engines come in when the command runs.

Exit status: 0 = done; 1 = a recording ended with other maps than the recorded ones, or a search of the check engine
found a violation; 2 = wrong usage or bad input.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pykmm.comparison import Comparison
    from pykmm.tape import Tape

EXIT_DIFFERENT = 1
#: Runs per row that count, where nothing is said.
REPEATS = 5


def compare(
    what: Annotated[list[str] | None, typer.Argument(
        metavar="TRACE|WORKLOAD...",
        help="Recordings, saved tapes, and workloads with parameters: page_fault1[size=64M] (pykmm list).")] = None,
    strategies: Annotated[list[str] | None, typer.Option(
        "--strategies", "--strategy", "-s", metavar="A,B", help="Fault strategies; all if not given.")] = None,
    arches: Annotated[list[str] | None, typer.Option(
        "--arches", "--arch", metavar="A,B", help="Arch backends.  [default: x86]")] = None,
    engines: Annotated[list[str] | None, typer.Option(
        "--engines", "--engine", "-e", metavar="A,B",
        help="native: threads in this process. host: real system calls on this kernel. check: searches for races.  "
             "[default: native,host]")] = None,
    cpus: Annotated[list[str] | None, typer.Option(
        "--cpus", metavar="1,2,4",
        help="Threads of workloads, simulated CPUs of recordings; what each has by itself if not given.")] = None,
    repeats: Annotated[int, typer.Option(
        "--repeats", "--repeat", "-r", min=1, max=10000, help="Runs per row that count, interleaved.")] = REPEATS,
    warmup: Annotated[int, typer.Option("--warmup", min=0, max=100, help="Runs per row that do not count.")] = 1,
    baseline: Annotated[str | None, typer.Option(
        "--baseline", metavar="NAME", help="What ratios refer to; the first strategy if not given.")] = None,
    memory: Annotated[str | None, typer.Option(
        "--memory", metavar="SIZE", help="Simulated memory, like 1G; as much as the tape needs if not given.")] = None,
    max_executions: Annotated[int, typer.Option(
        "--max-executions", min=1, metavar="N", help="Executions of each search of the check engine.")] = 2000,
    suite: Annotated[str | None, typer.Option(
        "--suite", metavar="NAME", help="Workloads and CPUs that belong together (pykmm list suites).")]
    = None,
    summary: Annotated[bool, typer.Option(
        "--summary", help="Print only the tables with a column per strategy.")] = False,
    json: Annotated[str | None, typer.Option(
        "--json", metavar="FILE",
        help="Write every figure as JSON; - writes it to standard output, instead of the tables.")] = None,
    plot: Annotated[Path | None, typer.Option(
        "--plot", metavar="FILE", help="Draw a picture, .png or .svg (needs matplotlib: pip install 'pykmm[plot]').")]
    = None,
) -> None:
    """Compare strategies, arches, engines and numbers of CPUs on recordings and workloads.

    Every combination runs several times, interleaved, after runs that do not count. Tables show medians and their
    spread; ratios are paired run by run. Workloads report a rate (faults, iterations or records per second).

    \b
    Examples:
      pykmm compare page_fault1 mmap1 --cpus 1,2 --plot faults.png
      pykmm compare 'ebizzy[flags=-mTRp]' --strategies mmap_sem,spf --repeats 20
      pykmm compare recording.perf-trace.txt.xz --engines native,host
      pykmm compare --suite faults --engines native --summary
    """
    from pykmm.cli import _names, _progress, _write_json, check_writable
    from pykmm.comparison import compare as run_comparison
    from pykmm.plugin import get_plugin_manager
    from pykmm.suites import SUITES

    wanted = list(what or [])
    counts = _counts(cpus)
    if suite is not None:
        if suite not in SUITES:
            raise ValueError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
        wanted += SUITES[suite].workloads
        counts = counts or list(SUITES[suite].cpus)
    if not wanted:
        raise ValueError("nothing to compare: name recordings or workloads (pykmm list), or --suite")
    if plot is not None and (used := _names(engines, "native,host")) and set(used) == {"check"}:
        raise ValueError("--plot: nothing to draw, as the check engine has no clock: add --engines native or host")
    draw = _plotter(plot)
    check_writable(json, plot)
    names = _names(strategies) or get_plugin_manager().strategies.names()
    with _progress() as progress:
        tapes = [_find(text) for text in wanted]
        comparison = run_comparison(
            tapes, names, _names(engines, "native,host"), _names(arches, "x86"), cpus=counts or None, memory=memory,
            repeats=repeats, warmup=warmup, baseline=baseline, max_executions=max_executions, progress=progress)
    if json != "-":
        _print(comparison, summary)
    if json is not None:
        _write_json(json, comparison.to_dict())
    if draw is not None:
        draw(comparison)
    if not comparison.maps_ok or not comparison.checks_ok:
        raise typer.Exit(EXIT_DIFFERENT)


def _counts(given: list[str] | None) -> list[int]:
    found = []
    for word in filter(None, (word.strip() for text in given or [] for word in text.split(","))):
        if not word.isdecimal():
            raise ValueError(f"--cpus takes numbers like 1,2,4, not {word!r}")
        found.append(int(word))
    if given is not None and not found:
        raise ValueError("--cpus takes numbers like 1,2,4")
    return found


def _find(text: str) -> Tape | str:
    """A workload by its name, or the tape in a file."""
    from pykmm.plugin import get_plugin_manager, split_options
    from pykmm.tape import Tape

    workloads = get_plugin_manager().workloads
    if Path(text).exists():
        return Tape.load(text)
    if "/" not in text and split_options(text)[0] in workloads:
        return text
    if "/" in text or Path(text).suffix:
        return Tape.load(text)      # says that there is no such file
    raise ValueError(f"{text!r} is neither a file nor a workload; known: {', '.join(workloads.names())}")


def _plotter(path: Path | None) -> Callable[[Comparison], None] | None:
    """What will draw the picture: an impossible one is refused before anything runs."""
    if path is None:
        return None
    from pykmm.comparison_plot import check_target

    check_target(path)
    return lambda comparison: comparison.plot(path)


def _print(comparison: Comparison, summary: bool) -> None:
    from pykmm.cli import _console, print_replay, tape_title
    from pykmm.comparison_report import comparison_tables, footnotes, summary_tables

    console = _console()

    def say(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    rated = len({row.workload for row in comparison.rows if row.rates})
    tapes = {row.workload: row.result.tape for row in comparison.rows if row.result is not None}
    for tape in tapes.values():
        if tape.work is None:
            say(tape_title(Path(tape.source or "tape").name, tape))
    if not summary:
        for table in comparison_tables(comparison, console.width):
            console.print(table)
    if summary or rated > 1:
        for table in summary_tables(comparison, console.width):
            console.print(table)
    for line in footnotes(comparison):
        say(line)
    for source, tape in tapes.items():
        print_replay(say, tape, comparison.of(source))
