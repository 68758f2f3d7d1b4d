# SPDX-License-Identifier: GPL-2.0-only
"""Every scenario on the check engine, with the strategy and the arch that are tested.

A scenario's tape does not depend on the strategy that it was written for: whatever the schedule, its expectations must
hold, and nothing may be used after it was freed, deadlock, leak, or stay locked.
"""
from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pykmm.conformance.guard import note
from pykmm.conformance.report import Failure, limited

if TYPE_CHECKING:
    from pykmm.checking.report import CheckReport
    from pykmm.checking.scenario import Config, Scenario
    from pykmm.checking.source import Source
    from pykmm.conformance.subject import Subject
    from pykmm.tape import Tape
    from pykmm_ext.engine.check import Program

__all__ = ["DANGEROUS", "check_catalogue", "scenarios"]

#: Kinds of violations after which the native engine would not come back, or take this process with it.
DANGEROUS = frozenset({"use-after-free", "deadlock", "livelock", "crash", "lock-held", "sleep-in-atomic"})
#: Executions for making the schedule of a violation shorter.
_MINIMISE = 400
_MAX_STEPS = 20_000


def scenarios() -> Iterator[Scenario]:
    """The registered scenarios. Of those with the same tape one, if there is one, that frees at once what it can."""
    from pykmm.checking.scenario import get
    from pykmm.plugin import get_plugin_manager

    found: dict[object, Scenario] = {}
    for name in get_plugin_manager().scenarios.names():
        scenario = get(name)
        tape = scenario.tape()      # of small pages: those of larger ones differ where these do
        key = tape.ops.tobytes(), tuple(tape.blobs)
        old = found.get(key)
        if old is None or ("eager-callbacks" in scenario.fixed.quirks and "eager-callbacks" not in old.fixed.quirks):
            found[key] = scenario
    return iter(found.values())


def _make(tape: Tape, subject: Subject, config: Config, cpus: int) -> Program:
    from pykmm.checking.program import make_program

    return make_program(tape, subject.make_strategy(), subject.make_arch(), cpus=cpus, memory=config.memory,
                        quirks=config.quirks, fault_around=config.fault_around)


def source_of(scenario: Scenario, subject: Subject) -> Source:
    """What is searched. By name, so that its replay tokens work anywhere, where both plugins are registered."""
    from pykmm.checking.source import Source, find

    if subject.named:
        return find(scenario, strategy=subject.strategy, arch=subject.arch)
    tape = scenario.tape(subject.page, subject.table_span)
    config = replace(scenario.fixed, memory=str(256 * subject.page), fault_around=str(subject.page))
    cpus = tape.program().nstreams
    return Source(scenario.name, "fixed", f"{subject.strategy} on {subject.arch}", "",
                  functools.partial(_make, tape, subject, config, cpus), subject.memory_model, config.preemptions)


def source_by_name(name: str, subject: Subject) -> Source:
    """The same of a scenario by its name."""
    from pykmm.checking.scenario import get

    return source_of(get(name), subject)


def search(scenario: Scenario, subject: Subject) -> list[CheckReport]:
    """Every schedule; where that are too many, those up to the limit and samples with random priorities."""
    from pykmm.checking.checker import check_source
    from pykmm.checking.search import Settings

    effort = subject.effort
    source = source_of(scenario, subject)
    settings = Settings(subject.memory_model, "dpor", 0, None, effort.executions, effort.seconds, True, _MAX_STEPS)
    reports = [check_source(source, settings, budget=_MINIMISE)]
    if reports[0].ok and not reports[0].finished and effort.samples:
        settings = Settings(subject.memory_model, "pct", subject.seed, None, effort.samples, effort.seconds, True,
                            _MAX_STEPS)
        reports.append(check_source(source, settings, budget=_MINIMISE))
    return reports


def check_catalogue(subject: Subject) -> tuple[str, list[Failure]]:
    """What was done in words, and a failure per scenario, with its trace and the token that replays it."""
    failures: list[Failure] = []
    found: list[tuple[Scenario, CheckReport]] = []
    exhausted = bounded = executions = others = 0
    for scenario in scenarios():
        note(f"scenario {scenario.name}")
        if not scenario.fits(subject.page):
            others += 1
            continue
        try:
            reports = search(scenario, subject)
        except (ValueError, MemoryError, OSError) as error:
            failures.append(Failure(f"{scenario.name} cannot be run: {type(error).__name__}: {error}"))
            continue
        executions += sum(report.executions + report.failed for report in reports)
        bad = next((report for report in reports if not report.ok), None)
        if bad is not None:
            found.append((scenario, bad))
        elif reports[0].complete:
            exhausted += 1
        else:
            bounded += 1
    found.sort(key=lambda pair: len(pair[1].violations[0].schedule))     # the shortest is the easiest to read
    failures += [_failure(scenario, subject, bad, shown=i == 0) for i, (scenario, bad) in enumerate(found)]
    done = f"{exhausted + bounded + len(failures)} scenarios under {subject.memory_model}: {exhausted} exhausted"
    if bounded:
        done += f", {bounded} up to a limit"
    if others:
        done += f", {others} left out (for other page sizes)"
    if failures:
        done += f", {len(failures)} with a violation"
    return f"{done}; {executions:,} executions", limited(failures)


def _failure(scenario: Scenario, subject: Subject, report: CheckReport, shown: bool) -> Failure:
    violation = report.violations[0]
    text = f"{scenario.name} ({scenario.title}): {violation.kind}: {violation.message}"
    if violation.trace is not None and shown:
        text += "\n" + violation.trace.text(max_rows=40)
    replay = f"pykmm check --replay {shlex.quote(violation.token)}" if subject.named else "failure.check.replay()"
    return Failure(text, f"replay: {replay}", scenario.tape(subject.page, subject.table_span), report)
