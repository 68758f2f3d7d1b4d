# SPDX-License-Identifier: GPL-2.0-only
"""``pykmm check``. Importing this is cheap: the engine comes in when the command runs.

Exit status: 0 = no violation was found (``all``: every fixed variant is clean, every buggy one shows what it is
expected to); 1 = a violation was found (``all``: something else came out); 2 = wrong usage or bad input.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pykmm.checking.report import CheckReport
    from pykmm.checking.scenario import Scenario
    from pykmm.checking.source import Checkable

EXIT_FOUND = 1
#: Seconds for one search of ``check all`` where no limit is given.
ALL_SECONDS = 120.0

Names = Annotated[list[str] | None, typer.Argument(
    metavar="NAME...", help="Scenarios (--list shows them), 'all', or files with tapes.")]


def check(
    names: Names = None,
    strategy: Annotated[str | None, typer.Option(
        "--strategy", "-s", metavar="NAME", help="Fault strategy, instead of the scenario's own.")] = None,
    arch: Annotated[str | None, typer.Option("--arch", metavar="NAME", help="Arch backend, likewise.")] = None,
    explorer: Annotated[str, typer.Option(
        "--explorer", "-x", help="dpor: exhaustive. dfs: every schedule. random, pct: samples.")] = "dpor",
    memory_model: Annotated[str | None, typer.Option(
        "--memory-model", "-m", help="sc, tso, pso or power; the arch's own if not given.")] = None,
    preemptions: Annotated[int | None, typer.Option(
        "--preemptions", "-p", min=0, metavar="K", help="Only schedules with at most K preemptions.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random and pct.")] = 0,
    max_executions: Annotated[int | None, typer.Option(
        "--max-executions", min=1, metavar="N", help="Stop after N executions.")] = None,
    max_seconds: Annotated[float | None, typer.Option(
        "--max-seconds", min=0, metavar="S", help="Stop each search after S seconds; all: 120, 0 = no limit.")] = None,
    jobs: Annotated[int, typer.Option(
        "--jobs", "-j", min=1, max=256, metavar="N", help="Spread over N processes.")] = 1,
    variant: Annotated[str, typer.Option("--variant", help="fixed or buggy.")] = "fixed",
    keep_going: Annotated[bool, typer.Option(
        "--keep-going", "-k", help="Report every different violation, not only the first.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print all steps of a trace.")] = False,
    json: Annotated[str | None, typer.Option(
        "--json", metavar="FILE",
        help="Write reports as JSON; - writes to standard output, instead of the text.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the traces.")] = None,
    replay: Annotated[str | None, typer.Option(
        "--replay", metavar="FILE|TOKEN", help="Run the schedule of a report again and show it.")] = None,
    list_: Annotated[bool, typer.Option("--list", "-l", help="List the scenarios.")] = False,
) -> None:
    """Look for a schedule that breaks a scenario, or show that there is none.

    Exit status: 0 no violation, 1 a violation was found, 2 wrong usage. With 'all': 0 only if every fixed variant is
    clean and every buggy one is found with a kind that it is expected to show, or clean on an arch on which it cannot
    happen.

    \b
    Examples:
      pykmm check --list
      pykmm check R1-ptl-spin --variant buggy --html race.html
      pykmm check all --jobs 2
      pykmm check --replay pykmm1:R1-ptl-spin/buggy:...
    """
    from pykmm.checking.search import Settings
    from pykmm.cli import check_writable

    check_writable(json, html)
    if list_:
        _list(json)
        return
    if replay is not None:
        _replay(replay, list(names or []), full, json)
        return
    if not names:
        raise ValueError("nothing to check: give the name of a scenario, 'all', or --list")
    # Wrong options are found before anything runs.
    Settings(memory_model or "tso", explorer, preemptions=preemptions)
    options: dict[str, Any] = {
        "strategy": strategy, "arch": arch, "explorer": explorer, "memory_model": memory_model, "seed": seed,
        "preemptions": preemptions, "max_executions": max_executions, "max_seconds": max_seconds,
        "stop_at_violation": not keep_going,
    }
    with _workers(jobs) as executor:
        if "all" in names:
            if len(names) > 1:
                raise ValueError("'all' stands alone")
            if max_seconds is None and max_executions is None:
                options["max_seconds"] = ALL_SECONDS
            ok, reports = _check_all(options, executor, quiet=json == "-")
        else:
            ok, reports = _check_some(names, variant, options, executor, full=full, quiet=json == "-")
    _write(reports, json, html)
    if not ok:
        raise typer.Exit(EXIT_FOUND)


@contextmanager
def _workers(jobs: int) -> Iterator[Executor | None]:
    if jobs == 1:
        yield None
        return
    import multiprocessing
    import signal
    from concurrent.futures import ProcessPoolExecutor

    # Not fork: the progress display is a thread. Ctrl-C reaches every process of the terminal: it is this one's.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("forkserver"), initializer=signal.signal,
                             initargs=(signal.SIGINT, signal.SIG_IGN)) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()      # in the middle of its part, which nobody waits for any more
            raise


def _scenarios() -> list[Scenario]:
    from pykmm.checking.scenario import get
    from pykmm.plugin import get_plugin_manager

    return [get(name) for name in get_plugin_manager().scenarios.names()]


def _what(name: str) -> Checkable:
    """A scenario's name, or the tape in a file."""
    from pykmm.plugin import get_plugin_manager

    if name not in get_plugin_manager().scenarios.names() and Path(name).is_file():
        from pykmm.tape import Tape

        return Tape.load(name)
    return name


def _list(json: str | None) -> None:
    from pykmm.cli import _write_json

    scenarios = _scenarios()
    if json is not None:
        _write_json(json, [{
            "name": s.name, "title": s.title, "race": s.race, "source": s.source, "fixed": str(s.fixed),
            "buggy": None if s.buggy is None else str(s.buggy), "expected": sorted(s.expected),
            "needs": sorted(s.needs),
        } for s in scenarios])
        return
    width = max([8, *(len(s.name) for s in scenarios)])
    for s in scenarios:
        typer.echo(f"{s.name:<{width}}  {s.title}")
        typer.echo(f"{'':<{width}}    fixed: {s.fixed}")
        if s.buggy is not None:
            typer.echo(f"{'':<{width}}    buggy: {s.buggy}; expected: {', '.join(sorted(s.expected))}"
                       + ("" if s.shown else " (not seen by this build)"))
    if not scenarios:
        typer.echo("no scenarios are installed")


def _check_some(names: list[str], variant: str, options: dict[str, Any], executor: Executor | None, *, full: bool,
                quiet: bool) -> tuple[bool, list[CheckReport]]:
    from pykmm.checking.checker import check as run_check
    from pykmm.cli import _progress

    found = [_what(name) for name in names]
    reports: list[CheckReport] = []
    for what in found:
        with _progress() as progress:
            reports.append(run_check(what, variant=variant, executor=executor, progress=progress, **options))
        if not quiet:
            typer.echo(reports[-1].text(full=full, max_rows=None if full else 150))
            if what is not found[-1]:
                typer.echo("")
    return all(report.ok for report in reports), reports


def verdict(report: CheckReport, expected: frozenset[str]) -> tuple[bool, str]:
    """Whether a report is what is expected of a variant (nothing, or one of these kinds), and in words what it is."""
    if report.ok:
        bound = f" up to {report.bound} preemption{'' if report.bound == 1 else 's'}"
        seen = "" if report.complete else bound if report.bounded_complete else ", not exhausted"
        return not expected, f"clean{seen}" if not expected else f"not found{seen}"
    kinds = ", ".join(dict.fromkeys(violation.kind for violation in report.violations))
    return not expected.isdisjoint(violation.kind for violation in report.violations), kinds


def _check_all(options: dict[str, Any], executor: Executor | None, *, quiet: bool) -> tuple[bool, list[CheckReport]]:
    from pykmm.checking.checker import check as run_check
    from pykmm.cli import _progress

    say: Callable[[str], None] = (lambda text: None) if quiet else typer.echo
    scenarios = _scenarios()
    width = max([8, *(len(s.name) for s in scenarios)])
    say(f"{'scenario':<{width}}  {'variant':<7}  {'':<3}  {'verdict':<26}  {'executions':>12}  {'time':>8}  expected")
    reports: list[CheckReport] = []
    wrong = unfinished = 0
    for scenario in scenarios:
        for variant, expected in (("fixed", frozenset[str]()), ("buggy", scenario.expected)):
            if variant == "buggy" and (scenario.buggy is None or not scenario.shown):
                continue
            lacks = scenario.lacks(options["arch"], options["memory_model"]) if expected else frozenset[str]()
            if lacks:
                expected = frozenset()
            with _progress() as progress:
                report = run_check(scenario, variant=variant, executor=executor, progress=progress, **options)
            reports.append(report)
            good, text = verdict(report, expected)
            wrong += not good
            unfinished += report.ok and not (report.complete or report.bounded_complete)
            say(f"{scenario.name:<{width}}  {variant:<7}  {'ok' if good else 'NO':<3}  {text:<26}  "
                f"{report.executions + report.failed:>12,}  {report.seconds:>6.2f} s  "
                f"{', '.join(sorted(expected)) or 'nothing'}"
                + (f" without {', '.join(sorted(lacks))}" if lacks else ""))
    say("")
    say(f"{len(reports)} searches: {len(reports) - wrong} as expected, {wrong} not"
        + (f"; {unfinished} came to their limit before their end" if unfinished else ""))
    for report in reports:
        if not report.ok and report.variant == "fixed":
            say("")
            say(str(report))
    return not wrong, reports


def _replay(text: str, names: list[str], full: bool, json: str | None) -> None:
    from pykmm.checking.checker import replay_token
    from pykmm.checking.schedule import TokenError, decode
    from pykmm.cli import _write_json

    if not re.match(r"\s*pykmm\d+:", text):
        match = re.search(r"pykmm\d+:[^\s\"'<]+", Path(text).read_text("utf-8", errors="replace"))
        if match is None:
            raise TokenError(f"{text}: there is no replay token in it")
        text = match[0]
    if len(names) > 1:
        raise ValueError("a replay is of one scenario")
    token = decode(text)
    if not names and token.name == "tape":
        raise ValueError("the replay token was made from a tape: give the file, too")
    trace = replay_token(token, _what(names[0]) if names else None)
    if json is not None:
        _write_json(json, {"kind": trace.kind, "message": trace.message, **trace.to_json()})
    if json != "-":
        typer.echo(f"{trace.kind}: {trace.message}" if trace.kind else "the schedule ends without a violation")
        typer.echo("")
        typer.echo(trace.text(full=full, max_rows=None))
        if trace.locks:
            typer.echo(f"\nat the end: {'; '.join(trace.locks)}")
    if trace.kind:
        raise typer.Exit(EXIT_FOUND)


def _write(reports: list[CheckReport], json: str | None, html: Path | None) -> None:
    from pykmm.cli import _write_json

    if json is not None:
        _write_json(json, [report.to_json() for report in reports])
    if html is not None:
        from pykmm.checking.html import page

        html.write_text(page(reports), encoding="utf-8")
