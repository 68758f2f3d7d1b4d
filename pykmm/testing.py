# SPDX-License-Identifier: GPL-2.0-only
"""Helpers for tests of pykmm and of programs and plugins that use it, and the conformance kit for plugins.

A strategy's own pytest suite has, for all checks on all arches::

    import pykmm.testing

    class TestMine(pykmm.testing.StrategyConformance):
        strategy = "mine"

and without pytest there is :func:`check_conformance`. ``machine`` is a pytest fixture: import it into a
``conftest.py``; it alone needs pytest.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pykmm.checking.report import CheckReport
from pykmm.conformance.checks import (
    ARCH_CHECKS,
    STRATEGY_CHECKS,
    Session,
    check_arch_conformance,
    check_conformance,
)
from pykmm.conformance.report import CheckResult, ConformanceReport, Failure
from pykmm.conformance.subject import Subject
from pykmm.machine import Machine, MmStruct

if TYPE_CHECKING:
    from pykmm.conformance.subject import ArchLike, StrategyLike

try:
    import pytest
except ImportError:     # programs may use the rest
    HAVE_PYTEST = False
else:
    HAVE_PYTEST = True

__all__ = [
    "WORK_CLOCK", "ArchConformance", "CheckResult", "ConformanceReport", "Failure", "StrategyConformance",
    "assert_checked", "assert_no_leaks", "benchmark_workload", "check_arch_conformance", "check_conformance", "machine",
    "quiet_machine", "resident",
]


def _fail(text: str) -> NoReturn:
    """A failed test without the traceback of this module; without pytest an AssertionError."""
    __tracebackhide__ = True
    if HAVE_PYTEST:
        pytest.fail(text, pytrace=False)
    raise AssertionError(text)


@contextmanager
def quiet_machine(arch: str = "x86", strategy: str = "spf", cpus: int = 2,
                  memory: str | int = "64M") -> Iterator[Machine]:
    """A machine that is validated before it is closed, and must leak nothing (InvariantViolation otherwise)."""
    with Machine(arch=arch, strategy=strategy, cpus=cpus, memory=memory) as made:
        yield made
        made.validate()


class _WorkClock:
    """A clock that only the work of tapes moves forward; a nanosecond at each look, since it must not stand still."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1e-9
        return self.seconds


#: The timer for pytest-benchmark that :func:`benchmark_workload` needs: ``@pytest.mark.benchmark(timer=WORK_CLOCK)``.
WORK_CLOCK = _WorkClock()


def benchmark_workload(benchmark: Any, workload: str, strategy: str, threads: int | None = None, *, arch: str = "x86",
                       rounds: int = 10, warmup: int = 2) -> None:
    """Measure a workload under a strategy with pytest-benchmark's fixture `benchmark`.

    The time is that of the threads' work alone: no machine is made and no memory of the host is committed in it. The
    test needs :data:`WORK_CLOCK` as its timer. ``extra_info`` gets the median rate, and whether there were more threads
    than processors.

    :param workload: a name with parameters, such as "page_fault1[size=1M]"
    :param threads: its threads; the workload's own default if not given
    :param rounds: runs that count; `warmup` more come first

    ValueError: unknown names or parameters.
    """
    import statistics

    from pykmm.comparison import processors
    from pykmm.machine import memory_needed, page_size
    from pykmm.workload import make

    tape = make(workload, threads, page_size(arch))
    streams, memory = tape.program().nstreams, memory_needed(tape, arch)
    rates: list[float] = []

    def once() -> None:
        with Machine(arch=arch, strategy=strategy, cpus=streams, memory=memory) as made:
            result = made.run(tape)
        WORK_CLOCK.seconds += result.work_seconds
        rates.append(result.rate)

    benchmark.pedantic(once, rounds=rounds, warmup_rounds=warmup)
    if rates and tape.work is not None:
        benchmark.extra_info[f"{tape.work.unit}_per_second"] = round(statistics.median(rates[-rounds:]))
    benchmark.extra_info["oversubscribed"] = streams > processors()


def assert_checked(report: CheckReport, *, complete: bool = True) -> None:
    """Fail with the whole report, trace and replay token included, where a search has found a violation.

    `complete`: a search that has not seen every schedule (or every one up to the bound asked for) fails, too.
    """
    if not report.ok:
        _fail(f"{', '.join(dict.fromkeys(violation.kind for violation in report.violations))}\n{report}")
    if complete and not (report.complete or report.bounded_complete):
        _fail(f"{report.title}: {report.footer}")


@contextmanager
def assert_no_leaks(machine: Machine) -> Iterator[None]:
    """Frames that are in use after the block must be those that were in use before it.

    Address spaces made in the block must have exited and files been closed. AssertionError says how many frames stayed.
    """
    machine.validate()
    before = machine.vmstat["nr_used_frames"]
    yield
    machine.validate()
    after = machine.vmstat["nr_used_frames"]
    if after != before:
        raise AssertionError(f"{after - before} frames more in use than before")


def _machines() -> Iterator[Callable[..., Machine]]:
    """A function that makes machines (arguments as Machine); at the end each is validated and closed."""
    made: list[Machine] = []

    def make(arch: str = "x86", strategy: str = "spf", cpus: int = 2, memory: str | int = "64M",
             fault_around: str | int = "64K") -> Machine:
        made.append(Machine(arch=arch, strategy=strategy, cpus=cpus, memory=memory, fault_around=fault_around))
        return made[-1]

    yield make
    for one in made:
        if not one.closed:
            one.validate()
            one.close()


if TYPE_CHECKING or HAVE_PYTEST:
    machine = pytest.fixture(name="machine")(_machines)


def __getattr__(name: str) -> Any:
    if name == "machine":
        raise ImportError("pykmm.testing.machine is a pytest fixture, and pytest is not installed: "
                          "pip install 'pykmm[test]'")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def resident(mm: MmStruct, addr: int, length: int) -> int:
    """How many pages of the range are resident."""
    return sum(byte & 1 for byte in mm.mincore(addr, length))


# ---- the conformance kit -------------------------------------------------------------------------

_sessions: dict[tuple[type, str], Session] = {}


class _Conformance:
    """What both classes share: a session for every pair, made when the first test needs it."""

    effort: ClassVar[str] = "normal"
    seed: ClassVar[int] = 0

    def _result(self, name: str, strategy: StrategyLike, arch: ArchLike, checks: Any) -> CheckResult:
        key = type(self), "/".join(one if isinstance(one, str) else str(id(one)) for one in (strategy, arch))
        if key not in _sessions:
            _sessions[key] = Session(Subject(strategy, arch, effort=self.effort, seed=self.seed), checks)
        return _sessions[key].result(name)

    def _assert(self, result: CheckResult) -> None:
        __tracebackhide__ = True
        if result.status == "fail":
            _fail(str(result))
        if result.status == "skip" and HAVE_PYTEST:
            pytest.skip(result.detail)


class StrategyConformance(_Conformance):
    """What every strategy promises, as a class of tests: derive from it, and say which strategy.

    Each test is one check of :func:`check_conformance`; its failure shows what was expected, what came out, and how to
    see it again. The class needs no fixture and no plugin of pytest.

    :cvar strategy: name of a registered strategy, with options as in "spf-rfc5[ptl=spin]"; a Strategy; or a class or
        function that makes one
    :cvar arches: what it runs on: names or Arch objects; None = every registered arch
    :cvar effort: "quick" (a second or two on each arch), "normal" (some ten) or "full" (minutes)
    :cvar seed: of generated programs, stress and sampled schedules
    """

    strategy: ClassVar[StrategyLike]
    arches: ClassVar[Sequence[ArchLike] | None] = None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Every test once per arch."""
        from pykmm.plugin import get_plugin_manager

        arches = type(self).arches
        if arches is None:
            arches = get_plugin_manager().arches.names()
        metafunc.parametrize("arch", arches, ids=[one if isinstance(one, str) else getattr(one, "name", None)
                                                  for one in arches])

    def _test(self, name: str, arch: ArchLike) -> None:
        __tracebackhide__ = True
        cls = type(self)
        if not hasattr(cls, "strategy"):
            _fail(f"{cls.__name__} does not say which strategy: strategy = \"name\"")
        self._assert(self._result(name, cls.strategy, arch, STRATEGY_CHECKS))

    def test_interface(self, arch: ArchLike) -> None:
        """The table of C functions is whole, and names and counters are there and unique.

        Failed: pykmm cannot use the strategy at all, or its reports would be misleading. Everything else is skipped.
        """
        self._test("interface", arch)

    def test_basics(self, arch: ArchLike) -> None:
        """Thirty accesses on an idle machine: each ends with the bytes or the signal that Linux gives.

        Failed: a fault is not resolved, or one is that must not be. "not done after": the access faults for ever.
        """
        self._test("basics", arch)

    def test_catalogue(self, arch: ArchLike) -> None:
        """Every scenario under every schedule (or as many as the effort allows) of the check engine.

        Failed: there is an order of events that breaks the machine or gives a wrong result. The report shows it step by
        step. The kind says what: use-after-free (a VMA or page table went while the fault used it), assertion and
        wrong-value (an access ended as it must not), stale-tlb, deadlock, livelock, leak, lock-held, lock-order.
        """
        self._test("catalogue", arch)

    def test_semantics_single(self, arch: ArchLike) -> None:
        """Generated programs of one thread do what they do on the running Linux: errno, signal, contents, mappings.

        Failed: without any concurrency, the strategy changes what a program sees. The report has the shortest program.
        """
        self._test("semantics-single", arch)

    def test_semantics_ordered(self, arch: ArchLike) -> None:
        """Programs of three threads, one operation after the other.

        Failed: what one CPU did is not seen by the next: a stale translation, a VMA from a cache.
        """
        self._test("semantics-ordered", arch)

    def test_semantics_disjoint(self, arch: ArchLike) -> None:
        """Programs of three threads at the same time, each in its own window, where no order may matter.

        Failed: a fault is disturbed by changes to another part of the address space.
        """
        self._test("semantics-disjoint", arch)

    def test_counters(self, arch: ArchLike) -> None:
        """Attempts, successes, retried faults and reasons add up and agree with what the machine counted.

        Failed: comparisons with this strategy would show wrong figures.
        """
        self._test("counters", arch)

    def test_leaks(self, arch: ArchLike) -> None:
        """Frames, page tables and VMAs of address spaces that are gone are free again.

        Failed: something is not freed, or freed later than quiesce() waits.
        """
        self._test("leaks", arch)

    def test_stress(self, arch: ArchLike) -> None:
        """Threads that fault and threads that unmap, move, protect and fork, without order; every byte is known.

        Failed: a write was lost, an access failed that may not, or a structure is broken. It may need several runs to
        come back; the catalogue is the place to find out why.
        """
        self._test("stress", arch)


class ArchConformance(_Conformance):
    """The porting checklist of an arch backend, as a class of tests; then programs, scenarios and stress on it.

    :cvar arch: name of a registered arch; an Arch; or a function that makes one
    :cvar strategy: what the last tests run on it
    :cvar effort: as of :class:`StrategyConformance`
    :cvar seed: likewise
    """

    arch: ClassVar[ArchLike]
    strategy: ClassVar[StrategyLike] = "mmap_sem"

    def _test(self, name: str) -> None:
        __tracebackhide__ = True
        cls = type(self)
        if not hasattr(cls, "arch"):
            _fail(f"{cls.__name__} does not say which arch: arch = \"name\"")
        self._assert(self._result(name, cls.strategy, cls.arch, ARCH_CHECKS))

    def test_interface(self) -> None:
        """Every member of arch_ops is there. Failed: the mm would call a NULL pointer. Everything else is skipped."""
        self._test("interface")

    def test_geometry(self) -> None:
        """Shifts, levels and limits fit together. Failed: an address leads to the wrong entry, or beyond the root."""
        self._test("geometry")

    def test_entries(self) -> None:
        """Random leaf entries keep their frame; PROT_NONE, COW and permissions. Failed: pages get lost or writable."""
        self._test("entries")

    def test_changes(self) -> None:
        """Each pte_mk* changes one thing, pte_modify permissions only. Failed: mprotect loses dirty or young bits."""
        self._test("changes")

    def test_tables(self) -> None:
        """Entries that point to tables; table_descend says what the other four say. Failed: walks go astray."""
        self._test("tables")

    def test_walk(self) -> None:
        """The MMU agrees with access_permitted, and sets A and D alone. Failed: it permits what the mm does not."""
        self._test("walk")

    def test_byte_order(self) -> None:
        """Every level of a walk is found in memory in the byte order of big_endian."""
        self._test("byte-order")

    def test_flush(self) -> None:
        """Pages, ranges, address spaces, flushed by each CPU. Failed: a CPU uses a translation that is gone."""
        self._test("flush")

    def test_table_freeing(self) -> None:
        """Page tables of what is unmapped are free again after a grace period. Failed: they leak."""
        self._test("table-freeing")

    def test_basics(self) -> None:
        """Thirty accesses: each ends with the bytes or the signal that Linux gives."""
        self._test("basics")

    def test_catalogue(self) -> None:
        """Every scenario under the arch's memory model. Failed: see :class:`StrategyConformance`; use-after-free of a
        frame with a page table means that tlb_remove_tables frees while somebody still walks, stale-tlb a flush that is
        missing."""
        self._test("catalogue")

    def test_semantics_single(self) -> None:
        """Generated programs of one thread, in this arch's pages, do what they do on Linux in pages of 4 KiB."""
        self._test("semantics-single")

    def test_semantics_ordered(self) -> None:
        """The same with three threads, one operation after the other. Failed: often a stale translation."""
        self._test("semantics-ordered")

    def test_stress(self) -> None:
        """Threads that fault and threads that change mappings, on real threads; every byte is known."""
        self._test("stress")
