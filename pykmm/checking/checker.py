# SPDX-License-Identifier: GPL-2.0-only
"""pykmm.check(): find a schedule that breaks a program, or show that there is none."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from time import monotonic
from typing import TYPE_CHECKING

from pykmm.checking.minimise import BUDGET, minimise
from pykmm.checking.report import CheckReport, Violation
from pykmm.checking.schedule import DEFAULT_STEPS, Token, TokenError, decode
from pykmm.checking.search import Found, Settings, replay, search
from pykmm.checking.source import find

if TYPE_CHECKING:
    from pykmm.checking.source import Checkable, Source
    from pykmm.checking.trace import Trace
    from pykmm_ext.engine.check import Program

__all__ = ["check", "check_source", "replay_token"]


def check(scenario: Checkable, *, strategy: str | None = None, arch: str | None = None, explorer: str = "dpor",
          memory_model: str | None = None, seed: int = 0, preemptions: int | None = None,
          max_executions: int | None = None, max_seconds: float | None = None, executor: Executor | None = None,
          variant: str = "fixed", cpus: int | None = None, memory: str | None = None, stop_at_violation: bool = True,
          minimised: bool = True, max_steps: int = 100_000,
          progress: Callable[[str], None] | None = None) -> CheckReport:
    """Run a scenario under every schedule that can make a difference, or under as many as asked for.

    :param scenario: a :class:`pykmm.Tape`, a scenario or the name of one (``pykmm check --list``), a compiled program,
        or a function that makes one
    :param strategy: fault strategy, with options as in "spf-rfc5[ptl=spin]"; of a tape "spf" if not given, of a
        scenario what its variant has
    :param arch: arch backend; "x86" if not given, or what the variant has
    :param explorer: "dpor" (exhaustive, equivalent schedules once), "dfs" (every schedule), "random", or "pct" (random
        priorities; finds bugs that need few preemptions)
    :param memory_model: "sc", "tso", "pso" or "power"; the arch's own if not given
    :param seed: of random and pct
    :param preemptions: dpor and dfs: only schedules with at most that many preemptions (a CPU has to give way, to
        another or to an interrupt, although it could go on; store buffers come for free). With dpor under another
        model than sc the bound is a heuristic: rarely, a behaviour within it is missed
    :param max_executions: executions of every kind after which to stop; random and pct: 10 000 if no limit is given
    :param max_seconds: seconds after which to stop
    :param executor: a ``concurrent.futures`` executor that the search is spread over
    :param variant: of a scenario: "fixed" or "buggy"
    :param cpus: simulated CPUs; as many as the tape needs if not given
    :param memory: simulated memory, like "1M"
    :param stop_at_violation: False: go on, and report every different violation
    :param minimised: simplify the schedule of each violation
    :param max_steps: an execution with more steps is a livelock
    :param progress: called now and then with a line that says how far it is

    A violation is a result, not an error: see :class:`pykmm.CheckReport`. ValueError: unknown names, impossible values.
    MemoryError: setup or an execution does not fit into the simulated memory.
    RuntimeError: the program did not do the same under the same schedule.
    """
    source = find(scenario, variant=variant, strategy=strategy, arch=arch, cpus=cpus, memory=memory)
    if preemptions is None and explorer in ("dpor", "dfs"):
        preemptions = source.preemptions
    settings = Settings(memory_model or source.memory_model, explorer, seed, preemptions, max_executions or 0,
                        max_seconds or 0.0, stop_at_violation, max_steps)
    try:
        return check_source(source, settings, executor=executor, budget=BUDGET if minimised else 0, progress=progress)
    except MemoryError as error:
        if str(error):
            raise
        raise MemoryError(
            f"{source.name}: an execution does not fit into the simulated memory (every CPU has its share, and a frame "
            "that is freed is not handed out again): --memory or memory= sets it, and a shorter tape needs less"
        ) from None


def check_source(source: Source, settings: Settings, *, executor: Executor | None = None, budget: int = BUDGET,
                 progress: Callable[[str], None] | None = None) -> CheckReport:
    """As :func:`check`, with everything decided. `budget`: executions for minimising each violation, 0 = none."""
    from pykmm.checking.parallel import search_parallel

    program = source.program()
    start = monotonic()

    def count(done: int) -> None:
        if progress is not None:
            rate = done / max(monotonic() - start, 1e-9)
            progress(f"{source.name}: {done:,} executions, {rate:,.0f}/s")

    if executor is None:
        part = search(program, settings, count)
    else:
        part = search_parallel(source, settings, executor, count)
    complete = part.finished and not part.bounded and not settings.sampling
    report = CheckReport(
        source.name, source.variant, source.config, program.nr_vcpus, settings.memory_model, settings.explorer,
        settings.preemptions, settings.seed, part.finished, complete, part.executions, part.blocked, part.failed,
        part.steps, monotonic() - start, outcomes=part.outcomes, stopped=part.stopped, source=source,
        max_steps=settings.max_steps)
    for found in part.violations:
        report.violations.append(_violation(source, program, settings, found, budget, progress))
    return report


def replay_token(token: str | Token, scenario: Checkable | None = None) -> Trace:
    """Run the execution that a replay token leads to; ``trace.kind`` says what it ended with.

    The token names the scenario and what it ran on; a tape or a program of one's own has to be given again. TokenError
    (a ValueError): the token is damaged, or was made from something else. ValueError: the schedule cannot be followed.
    """
    if isinstance(token, str):
        token = decode(token)
    if scenario is None:
        scenario = token.name
    elif isinstance(scenario, str) and scenario != token.name:
        raise TokenError(f"the replay token is of scenario {token.name!r}, not of {scenario!r}")
    options = dict(token.options)
    if "explore" in options:
        raise TokenError("the replay token is of pykmm.explore(): use pykmm.checking.explore.replay_token(), with "
                         "the program")
    cpus = options.pop("cpus", None)
    options.pop("steps", None)
    unknown = options.keys() - {"strategy", "arch", "memory"}
    if unknown:
        raise TokenError(f"the replay token has choices that this pykmm does not know: {', '.join(sorted(unknown))}")
    source = find(scenario, variant=token.variant or "fixed", cpus=None if cpus is None else int(cpus), **options)
    source.check_token(token)
    return replay(source, token.schedule, token.memory_model, max_steps=token.max_steps)


def _violation(source: Source, program: Program, settings: Settings, found: Found, budget: int,
               progress: Callable[[str], None] | None) -> Violation:
    if source.options.get("explore"):   # executions are slow there; a livelock has long ones
        budget = min(budget, 100_000 // max(len(found.schedule), 1))
    minimal = minimise(program, found.kind, found.schedule, settings.memory_model, max_steps=settings.max_steps,
                       budget=max(budget, 1), progress=progress)
    trace = replay(source, minimal.schedule, settings.memory_model, program=program, max_steps=settings.max_steps)
    options = dict(source.options)
    if found.kind == "livelock" and settings.max_steps != DEFAULT_STEPS:
        options["steps"] = str(settings.max_steps)
    token = Token(source.name, source.variant, source.digest, settings.memory_model, minimal.schedule, options)
    return Violation(found.kind, trace.message, minimal.schedule, found.execution, found.count, minimal.preemptions,
                     minimal.how, str(token), trace, settings.memory_model)
