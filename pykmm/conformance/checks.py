# SPDX-License-Identifier: GPL-2.0-only
"""The checks of the kit by name, and running them."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pykmm.conformance import arches, basics, catalogue, counters, interface, semantics, stress
from pykmm.conformance.guard import NOT_DONE, Outcome, guarded
from pykmm.conformance.report import CheckResult, ConformanceReport
from pykmm.conformance.subject import Subject

if TYPE_CHECKING:
    from pykmm.conformance.subject import ArchLike, StrategyLike

__all__ = ["ARCH_CHECKS", "STRATEGY_CHECKS", "Session", "check_arch_conformance", "check_conformance"]


@dataclass(frozen=True)
class Check:
    """One check: its name, what it asks, and the function. ``after``: checks that must not have failed badly."""

    name: str
    title: str
    function: Callable[[Subject], Outcome]
    after: tuple[str, ...] = ()
    #: called in this process beforehand, for what other checks can use again
    prepare: Callable[[Subject], None] | None = None


_SAFE = ("interface", "basics", "catalogue")

#: In the order in which they are made.
STRATEGY_CHECKS = {check.name: check for check in (
    Check("interface", "the table, the names and the counters are what a machine takes for granted",
          interface.check_interface),
    Check("basics", "one thread's faults are resolved, and wrong accesses end with the signal that Linux gives",
          basics.check_basics, ("interface",)),
    Check("catalogue", "no schedule of any scenario breaks anything (check engine)", catalogue.check_catalogue,
          ("interface", "basics")),
    Check("semantics-single", "one thread's programs do what they do on Linux",
          lambda subject: semantics.compare_programs(subject, "single"), _SAFE,
          lambda subject: semantics.prepare(subject, "single")),
    Check("semantics-ordered", "programs of several threads, one operation after the other, do what they do on Linux",
          lambda subject: semantics.compare_programs(subject, "ordered"), _SAFE,
          lambda subject: semantics.prepare(subject, "ordered")),
    Check("semantics-disjoint", "programs of several threads at the same time do what they do on Linux",
          lambda subject: semantics.compare_programs(subject, "disjoint"), _SAFE,
          lambda subject: semantics.prepare(subject, "disjoint")),
    Check("counters", "the counters add up and agree with the machine's", counters.check_counters, _SAFE),
    Check("leaks", "nothing is left of address spaces that are gone", stress.check_leaks, _SAFE),
    Check("stress", "contents, structures and counters survive threads that race (native engine)", stress.check_stress,
          _SAFE),
)}
#: Likewise, of an arch. The last ones run a strategy on it.
ARCH_CHECKS = {name: Check(name, title, function, () if name == "interface" else ("interface",))
               for name, (title, function) in arches.names().items()}
ARCH_CHECKS["basics"] = replace(STRATEGY_CHECKS["basics"], after=("interface", "walk"))
for _name in ("catalogue", "semantics-single", "semantics-ordered", "stress"):
    ARCH_CHECKS[_name] = STRATEGY_CHECKS[_name]


class Session:
    """The checks of one strategy on one arch; each is made once, when it is first asked for."""

    def __init__(self, subject: Subject, checks: dict[str, Check]) -> None:
        self.subject = subject
        self.checks = checks
        self._results: dict[str, CheckResult] = {}

    def result(self, name: str) -> CheckResult:
        """The result of a check. ValueError: an unknown name."""
        if name not in self.checks:
            raise ValueError(f"unknown check {name!r}; known: {', '.join(self.checks)}")
        if name not in self._results:
            self._results[name] = self._make(self.checks[name])
        return self._results[name]

    def _unsafe(self, check: Check) -> str:
        """Why a check is not made: what another one found would hang or crash this process; or ""."""
        for before in check.after:
            found = self.result(before)
            if found.ok:
                continue
            if before == "interface" or (found.detail == NOT_DONE and check.name != "catalogue"):
                return f"{before} failed"
            kinds = {violation.kind for failure in found.failures if failure.check is not None
                     for violation in failure.check.violations} & catalogue.DANGEROUS
            if kinds:
                return f"the catalogue found {', '.join(sorted(kinds))}: real threads might hang or crash"
        return ""

    def _lost(self, name: str) -> bool:
        return name in self._results and self._results[name].detail == NOT_DONE

    def _make(self, check: Check) -> CheckResult:
        why = self._unsafe(check)
        if why:
            return CheckResult(check.name, check.title, "skip", why, 0.0)
        start = time.monotonic()
        effort = self.subject.effort
        if check.prepare is not None:
            check.prepare(self.subject)
        # Where the first accesses hang, the catalogue may still say why: it gets as little time.
        short = check.name == "basics" or self._lost("basics")
        detail, failures = guarded(lambda: check.function(self.subject), effort.basics if short else effort.timeout)
        for failure in failures:
            if failure.check is not None and failure.check.source is None:
                failure.check.source = catalogue.source_by_name(failure.check.name, self.subject)
            failure.replay = failure.replay or self.subject.replay(check.name)
        return CheckResult(check.name, check.title, "fail" if failures else "pass", detail, time.monotonic() - start,
                           failures)

    def report(self, only: Iterable[str] | None = None, progress: Callable[[str], None] | None = None,
               *, kind: str = "strategy") -> ConformanceReport:
        """All checks, or some."""
        names = list(self.checks if only is None else only)
        for name in names:
            if name not in self.checks:
                raise ValueError(f"unknown check {name!r}; known: {', '.join(self.checks)}")
        subject = self.subject
        report = ConformanceReport(kind, subject.strategy if kind == "strategy" else subject.arch, subject.arch,
                                   subject.effort.name, subject.seed)
        for name in names:
            if progress is not None:
                progress(f"{report.name} on {subject.arch}: {name}")
            result = self.result(name)
            if result.status == "skip":    # what was asked for could not be made: what failed is the answer
                report.results += [failed for before in self.checks[name].after
                                   if not (failed := self.result(before)).ok and failed not in report.results]
            if result not in report.results:
                report.results.append(result)
        return report


def check_conformance(strategy: StrategyLike, arch: ArchLike = "x86", *, effort: str = "normal", seed: int = 0,
                      memory_model: str | None = None, only: Iterable[str] | None = None,
                      progress: Callable[[str], None] | None = None) -> ConformanceReport:
    """Find out whether a strategy keeps what every strategy promises.

    :param strategy: its name, with options as in "spf-rfc5[ptl=spin]"; a Strategy; or a function that makes one
    :param arch: arch backend that it runs on, likewise
    :param effort: "quick" (a second or two), "normal" (some ten seconds) or "full" (minutes)
    :param seed: of the generated programs, of the stress, and of sampled schedules
    :param memory_model: of the check engine; the arch's own if not given
    :param only: names of checks; those that they build on are made as well, and reported where they fail
    :param progress: called with a line before each check

    A failed check is a result, not an error: see :class:`ConformanceReport`. ValueError: unknown names.
    """
    subject = Subject(strategy, arch, effort=effort, seed=seed, memory_model=memory_model)
    return Session(subject, STRATEGY_CHECKS).report(only, progress)


def check_arch_conformance(arch: ArchLike, *, strategy: StrategyLike = "mmap_sem", effort: str = "normal",
                           seed: int = 0, only: Iterable[str] | None = None,
                           progress: Callable[[str], None] | None = None) -> ConformanceReport:
    """Find out whether an arch backend keeps what the porting checklist of ``pykmm_ext/arch.pxd`` says.

    :param arch: its name, an Arch, or a function that makes one
    :param strategy: that the checks beyond the checklist run on it

    The other parameters and the errors are those of :func:`check_conformance`.
    """
    subject = Subject(strategy, arch, effort=effort, seed=seed)
    subject.of_arch = True
    return Session(subject, ARCH_CHECKS).report(only, progress, kind="arch")
