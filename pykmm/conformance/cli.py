# SPDX-License-Identifier: GPL-2.0-only
"""``pykmm conformance``. Importing this is cheap: the kit comes in when the command runs.

Exit status: 0 = every check that was made has passed; 1 = one has failed; 2 = wrong usage.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pykmm.conformance.report import ConformanceReport

EXIT_FAILED = 1


def conformance(
    name: Annotated[str, typer.Argument(
        metavar="NAME", help="A fault strategy (with options: 'name[option=value]') or an arch.")],
    arch: Annotated[list[str] | None, typer.Option(
        "--arch", metavar="A,B", help="Arches to test a strategy on; 'all': every one. x86 if not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A second or two on each arch, not some ten.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Minutes on each arch.")] = False,
    only: Annotated[list[str] | None, typer.Option(
        "--only", metavar="CHECK,CHECK", help="These checks; all if not given.")] = None,
    seed: Annotated[int, typer.Option(
        "--seed", help="Of generated programs, stress and sampled schedules.")] = 0,
    memory_model: Annotated[str | None, typer.Option(
        "--memory-model", "-m", help="sc, tso, pso or power, for the catalogue; the arch's own if not given.")] = None,
    json: Annotated[str | None, typer.Option(
        "--json", metavar="FILE",
        help="Write the reports as JSON; - writes to standard output, instead of the text.")] = None,
    save: Annotated[Path | None, typer.Option(
        "--save", metavar="DIR", help="Keep the tape of every failure there, as .npz.")] = None,
) -> None:
    """Test whether a strategy, or an arch, keeps what every one promises.

    A strategy: its table and names; its first accesses; every scenario under every schedule; generated programs against
    the running Linux; counters; leaks; racing threads. An arch: the porting checklist, then the same under mmap_sem.
    Exit status: 0 passed, 1 a check failed, 2 wrong usage.

    \b
    Examples:
      pykmm conformance spf --quick
      pykmm conformance 'spf-rfc5[recheck=off]' --arch x86,x86-paravirt
      pykmm conformance x86-paravirt
      pykmm conformance spf --only catalogue --full --json report.json
    """
    from pykmm.checking.scenario import MEMORY_MODELS
    from pykmm.cli import _names, _progress, _write_json, check_writable
    from pykmm.conformance.checks import ARCH_CHECKS, STRATEGY_CHECKS, check_arch_conformance, check_conformance
    from pykmm.machine import check_names
    from pykmm.plugin import get_plugin_manager, split_options

    if quick and full:
        raise ValueError("--quick and --full exclude each other")
    if memory_model is not None and memory_model not in MEMORY_MODELS:
        raise ValueError(f"unknown memory model {memory_model!r}; known: {', '.join(MEMORY_MODELS)}")
    manager = get_plugin_manager()
    base = split_options(name)[0]
    of_arch = base in manager.arches and base not in manager.strategies
    if of_arch and (arch or memory_model):
        raise ValueError(f"{name!r} is an arch: --arch and --memory-model are for strategies")
    if not of_arch and base not in manager.strategies:
        raise ValueError(f"unknown strategy or arch {base!r}; known strategies: "
                         f"{', '.join(manager.strategies.names())}; arches: {', '.join(manager.arches.names())}")
    (manager.arches if of_arch else manager.strategies).parse(name)
    asked = _names(arch, "x86")
    arches = manager.arches.names() if asked == ["all"] else check_names("arch", asked)
    if of_arch:
        arches = [name]
    checks = _names(only) or None
    known = ARCH_CHECKS if of_arch else STRATEGY_CHECKS
    for check in checks or ():
        if check not in known:
            raise ValueError(f"unknown check {check!r}; known: {', '.join(known)}")
    check_writable(json)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    effort = "quick" if quick else "full" if full else "normal"
    reports: list[ConformanceReport] = []
    for one in arches:
        with _progress() as progress:
            if of_arch:
                reports.append(check_arch_conformance(name, effort=effort, seed=seed, only=checks, progress=progress))
            else:
                reports.append(check_conformance(name, one, effort=effort, seed=seed, memory_model=memory_model,
                                                 only=checks, progress=progress))
        if json != "-":
            typer.echo(str(reports[-1]))
            if one != arches[-1]:
                typer.echo()
        if save is not None:
            _save(reports[-1], save)
    if json is not None:
        _write_json(json, [report.to_json() for report in reports])
    if not all(report.ok for report in reports):
        raise typer.Exit(EXIT_FAILED)


def _save(report: ConformanceReport, directory: Path) -> None:
    for result in report.results:
        for number, failure in enumerate(result.failures, 1):
            if failure.tape is not None:
                path = directory / f"{report.name.partition('[')[0]}-{report.arch}-{result.name}-{number}.npz"
                failure.tape.save(path)
                typer.echo(f"saved {path}", err=True)
