# SPDX-License-Identifier: GPL-2.0-only
"""What a search found: CheckReport as text, JSON and HTML."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykmm.checking.source import Source
    from pykmm.checking.trace import Trace

__all__ = ["CheckReport", "Violation"]

MODEL_NAMES = {"sc": "sequential consistency", "tso": "TSO", "pso": "PSO", "power": "POWER"}


@dataclass
class Violation:
    """One thing that went wrong, and the way to it."""

    kind: str                       #: use-after-free, deadlock, ... (``pykmm.checking.scenario.KINDS``)
    message: str
    schedule: tuple[int, ...]       #: agent | choice << 8, a step each
    execution: int = 0              #: complete executions before the first one that ended with it
    count: int = 1                  #: executions that ended with it
    preemptions: int = 0            #: times that a CPU had to give way although it could have gone on
    minimal: str = ""               #: how the schedule was minimised; "" = it is as it was found
    token: str = ""                 #: one line; ``pykmm check --replay TOKEN`` comes back here
    trace: Trace | None = None
    memory_model: str = "sc"

    @property
    def locks(self) -> list[str]:
        """Per CPU that holds a lock or has IRQs off at the end: a sentence."""
        return [] if self.trace is None else self.trace.locks

    def text(self, *, full: bool = False, max_rows: int | None = 150) -> str:
        """Kind, message, trace, locks and token. Arguments as of :meth:`Trace.text`."""
        lines = [f"{self.kind}: {self.message}"]
        if self.trace is not None:
            lines += ["", self.trace.text(full=full, max_rows=max_rows)]
            if self.locks:
                lines += ["", "at the end: " + "; ".join(self.locks)]
        times = "1 preemption" if self.preemptions == 1 else f"{self.preemptions} preemptions"
        lines += ["", f"schedule: {len(self.schedule)} steps, {times}{f' ({self.minimal})' if self.minimal else ''}"]
        if self.token:
            lines.append(f"replay: {self.token}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Everything, for json.dump()."""
        return {
            "kind": self.kind, "message": self.message, "schedule": list(self.schedule), "execution": self.execution,
            "count": self.count, "preemptions": self.preemptions, "minimised": self.minimal, "token": self.token,
            "locks": self.locks, "trace": None if self.trace is None else self.trace.to_json(),
        }


def _outcomes(outcomes: dict[Any, int]) -> list[list[Any]]:
    """Ordered; what is no number or text in a way that JSON knows is its repr()."""
    plain = [(value if value is None or isinstance(value, (bool, int, str)) else repr(value), count)
             for value, count in outcomes.items()]
    plain.sort(key=lambda pair: (str(type(pair[0])), pair[0] if isinstance(pair[0], int) else 0, str(pair[0])))
    return [list(pair) for pair in plain]


@dataclass
class CheckReport:
    """What a search over schedules found, and how much of them it has seen. ``assert report.ok, str(report)``."""

    name: str                       #: what was run
    variant: str                    #: "fixed", "buggy", or ""
    config: str                     #: what it ran on, in words
    vcpus: int
    memory_model: str               #: sc, tso, pso or power
    explorer: str                   #: dpor, dfs, random or pct
    bound: int | None               #: preemptions; None = any number
    seed: int
    finished: bool                  #: the search came to its own end
    complete: bool                  #: ... and no schedule was left out
    executions: int                 #: that came to their end without a violation
    blocked: int                    #: that were cut off because the rest was seen already
    failed: int                     #: that ended with a violation
    steps: int
    seconds: float                  #: of the search, without minimising
    violations: list[Violation] = field(default_factory=list)
    outcomes: dict[Any, int] = field(default_factory=dict)  #: executions by what they ended with (a hash, or a value)
    stopped: str = ""               #: why the search ended early: "violation", "executions", "time"
    source: Source | None = field(default=None, repr=False, compare=False)
    max_steps: int = 100_000        #: an execution of more is a livelock

    @property
    def ok(self) -> bool:
        """No violation was found. Whether everything was looked at: ``complete``."""
        return not self.violations

    @property
    def bounded_complete(self) -> bool:
        """The search up to ``bound`` preemptions came to its end, and more preemptions are possible.

        With explorer dpor under tso, pso or power that is a heuristic: a store that becomes visible late may need its
        preemption somewhere else than where the reduction tries one, so that rarely a behaviour is missed.
        """
        return self.finished and not self.complete and self.bound is not None

    @property
    def executions_per_s(self) -> float:
        """Executions of every kind per second."""
        total = self.executions + self.blocked + self.failed
        return total / self.seconds if self.seconds > 0 else 0.0

    @property
    def footer(self) -> str:
        """One sentence that says what was covered."""
        where = (f"under {MODEL_NAMES.get(self.memory_model, self.memory_model)}, {self.vcpus} "
                 f"vCPU{'' if self.vcpus == 1 else 's'}")
        count = f"{self.executions:,} execution{'' if self.executions == 1 else 's'}"
        if self.failed:
            count += f" and {self.failed:,} with a violation"
        if self.complete:
            return f"exhaustive {where}: {count}"
        if self.bounded_complete:
            how = "complete" if self.memory_model == "sc" or self.explorer == "dfs" else "searched"
            return f"{how} up to {self.bound} preemption{'' if self.bound == 1 else 's'} {where}: {count}"
        why = {"violation": "stopped at the first violation", "executions": "limit of executions reached",
               "time": "limit of time reached"}.get(self.stopped, "sampled")
        if self.explorer in ("random", "pct"):
            why += f"; explorer {self.explorer}, seed {self.seed}"
        return f"not exhaustive ({why}) {where}: {count}"

    @property
    def title(self) -> str:
        """What was checked, in one line."""
        return f"{self.name}{f' ({self.variant})' if self.variant else ''}{f': {self.config}' if self.config else ''}"

    def replay(self, violation: Violation | None = None) -> Trace:
        """The steps of a violation (the first if None), run again. ValueError where it does not end the same way."""
        from pykmm.checking.search import replay

        if violation is None:
            if not self.violations:
                raise ValueError("there is no violation to replay")
            violation = self.violations[0]
        if self.source is None:
            raise ValueError("this report has lost what it was made from: replay its token instead")
        found = replay(self.source, violation.schedule, violation.memory_model, max_steps=self.max_steps)
        if found.kind != violation.kind:
            raise ValueError(f"the schedule ended with {found.kind or 'nothing'} instead of {violation.kind}: the "
                             "program does not do the same again")
        return found

    def text(self, *, full: bool = False, max_rows: int | None = 150) -> str:
        """Title, violations and footer. Arguments as of :meth:`Trace.text`."""
        parts = [self.title]
        for number, violation in enumerate(self.violations, 1):
            head = f"violation {number} of {len(self.violations)}: " if len(self.violations) > 1 else "violation: "
            parts.append(head + violation.text(full=full, max_rows=max_rows))
        if not self.violations:
            parts.append("no violation found")
        parts.append(f"{self.footer}\n{self.blocked:,} blocked, {self.steps:,} steps, {self.executions_per_s:,.0f} "
                     "executions/s")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        if self.ok:
            return f"<CheckReport {self.name}: no violation, {self.footer}>"
        first = self.violations[0]
        return f"<CheckReport {self.name}: {first.kind}: {first.message} ({len(self.violations)} in all)>"

    def to_json(self) -> dict[str, Any]:
        """Everything, for json.dump(). Times in seconds; outcomes as [value, executions] pairs, ordered."""
        return {
            "name": self.name, "variant": self.variant, "config": self.config, "ok": self.ok, "complete": self.complete,
            "finished": self.finished, "bounded_complete": self.bounded_complete, "vcpus": self.vcpus,
            "memory_model": self.memory_model, "explorer": self.explorer, "preemptions": self.bound, "seed": self.seed,
            "executions": self.executions, "blocked": self.blocked, "failed": self.failed, "steps": self.steps,
            "seconds": self.seconds, "executions_per_s": self.executions_per_s, "stopped": self.stopped,
            "outcomes": _outcomes(self.outcomes),
            "footer": self.footer, "violations": [violation.to_json() for violation in self.violations],
        }

    def to_html(self) -> str:
        """A page that stands alone: no other files, no scripts from elsewhere."""
        from pykmm.checking.html import page

        return page([self])
