# SPDX-License-Identifier: GPL-2.0-only
"""What the conformance kit found: ConformanceReport as text and JSON."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykmm.checking.report import CheckReport
    from pykmm.tape import Tape

__all__ = ["CheckResult", "ConformanceReport", "Failure"]


@dataclass
class Failure:
    """One thing that is wrong, and the way back to it."""

    message: str                            #: what was expected and what came out
    replay: str = ""                        #: how to see it again: a token, a command, or the operations
    tape: Tape | None = field(default=None, repr=False)     #: what was run; ``tape.save()`` keeps it
    check: CheckReport | None = field(default=None, repr=False)     #: of a scenario: schedule and trace

    def __str__(self) -> str:
        return f"{self.message}\n{self.replay}" if self.replay else self.message


@dataclass
class CheckResult:
    """The outcome of one check. ``detail`` says what was done, or why nothing was."""

    name: str
    title: str                  #: one line: what the check asks
    status: str                 #: "pass", "fail" or "skip"
    detail: str
    seconds: float
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """The check did not fail (it passed, or could not be made: ``status``)."""
        return self.status != "fail"

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.title}: {self.status}: {self.detail}",
                          *(_indent(str(failure)) for failure in self.failures)])


@dataclass
class ConformanceReport:
    """What :func:`pykmm.testing.check_conformance` found. ``assert report.ok, str(report)``."""

    kind: str                   #: "strategy" or "arch"
    name: str                   #: of what was tested
    arch: str                   #: that it ran on
    effort: str                 #: "quick", "normal" or "full"
    seed: int
    results: list[CheckResult] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(result.ok for result in self.results)

    @property
    def failures(self) -> list[Failure]:
        """Everything that is wrong, over all checks."""
        return [failure for result in self.results for failure in result.failures]

    @property
    def seconds(self) -> float:
        """Seconds of all checks."""
        return sum(result.seconds for result in self.results)

    def __getitem__(self, name: str) -> CheckResult:
        """The result of a check by its name. KeyError lists those that were made."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no check {name!r}; made: {', '.join(result.name for result in self.results)}")

    @property
    def title(self) -> str:
        """What was tested, in one line."""
        where = f" on {self.arch}" if self.kind == "strategy" else ""
        return f"conformance of {self.kind} {self.name}{where} ({self.effort}, seed {self.seed})"

    def text(self) -> str:
        """A table with a line per check; below it every failure with its reason and the way to see it again."""
        rows = [("check", "result", "seconds", "what was done")]
        rows += [(r.name, r.status.upper() if r.status == "fail" else r.status, f"{r.seconds:.2f}", r.detail)
                 for r in self.results]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [self.title, ""]
        for i, row in enumerate(rows):
            lines.append(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip())
            if i == 0:
                lines.append("-" * max(60, len(lines[-1])))
        for result in self.results:
            for number, failure in enumerate(result.failures, 1):
                lines += ["", f"{result.name}, failure {number} of {len(result.failures)} ({result.title})",
                          _indent(str(failure))]
        failed = [result.name for result in self.results if not result.ok]
        skipped = [result.name for result in self.results if result.status == "skip"]
        lines += ["", f"FAILED: {', '.join(failed)}" if failed else "passed: every check that was made"]
        if skipped:
            lines[-1] += f"; not made: {', '.join(skipped)}"
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Everything but tapes, for json.dump(). Times in seconds."""
        return {
            "kind": self.kind, "name": self.name, "arch": self.arch, "effort": self.effort, "seed": self.seed,
            "ok": self.ok, "seconds": self.seconds,
            "checks": [{
                "name": r.name, "title": r.title, "status": r.status, "detail": r.detail, "seconds": r.seconds,
                "failures": [{"message": f.message, "replay": f.replay,
                              "check": None if f.check is None else f.check.to_json()} for f in r.failures],
            } for r in self.results],
        }


def _indent(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def limited(failures: Iterable[Failure], most: int = 5) -> list[Failure]:
    """The first `most`, and how many there are beyond them."""
    found = list(failures)
    if len(found) <= most:
        return found
    return [*found[:most], Failure(f"and {len(found) - most} more")]
