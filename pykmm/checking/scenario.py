# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: the smallest tapes that show a race, with a configuration that has the bug and one that has its fix.

Plugins register them (hook ``pykmm_register_scenarios``); ``pykmm list`` shows them. ::

    scenario = pykmm.checking.scenario.get("R5-vma-freed-at-once")
    tape = scenario.tape()
    with scenario.fixed.machine(cpus=scenario.cpus) as machine:
        machine.run(tape)
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykmm.machine import Machine
    from pykmm.plugin import Registry
    from pykmm.tape import Tape

__all__ = ["ARCH_TRAITS", "KINDS", "MEMORY_MODELS", "Config", "Scenario", "get", "register"]

#: Kinds of violations that the check engine reports.
KINDS = frozenset({
    "use-after-free", "stale-tlb", "wrong-value", "deadlock", "livelock", "lock-order", "sleep-in-atomic",
    "rcu-not-held", "data-race", "leak", "broken-structure", "assertion", "lock-held", "crash",
    "exception", "pinned-page",
})
#: What the check engine can put under the primitives; None in a Config: what the arch has.
MEMORY_MODELS = ("sc", "tso", "pso", "power")
#: What a bug may need of the arch: flushes that interrupt the other CPUs and wait for them; page tables that IRQs off
#: alone keep; page tables that are freed by RCU, whatever IRQs are; the memory model `power`.
ARCH_TRAITS = frozenset({"flush-ipi", "irqs-off-keep-tables", "rcu-tables", "weak-memory"})
#: Bytes of the pages that sizes in a Config are for.
SMALL_PAGE = 4096


@dataclass(frozen=True)
class Config:
    """What a scenario runs on. Names are those of plugins; ``strategy`` and ``arch`` may carry options in brackets."""

    strategy: str = "spf"
    arch: str = "x86"
    quirks: tuple[str, ...] = ()            #: fixes of the mm to do without (``Machine(quirks=...)``)
    memory_model: str | None = None         #: one of MEMORY_MODELS; None = the arch's own
    preemptions: int | None = None          #: the space is searched up to this many preemptions; None = all of it
    memory: str = "1M"                      #: simulated memory, for pages of 4 KiB: as many frames of larger ones
    fault_around: str = "4K"                #: for pages of 4 KiB: as many larger ones; one page = off

    def __post_init__(self) -> None:
        if self.memory_model is not None and self.memory_model not in MEMORY_MODELS:
            raise ValueError(f"unknown memory model {self.memory_model!r}; known: {', '.join(MEMORY_MODELS)}")
        if self.preemptions is not None and self.preemptions < 0:
            raise ValueError(f"preemptions must not be negative, not {self.preemptions}")

    @property
    def page_size(self) -> int:
        """Bytes in a page of the arch. ValueError: no such arch."""
        from pykmm.machine import page_size

        return page_size(self.arch)

    @property
    def table_span(self) -> int:
        """Bytes that a table of PTEs maps on the arch. ValueError: no such arch."""
        from pykmm.machine import table_span

        return table_span(self.arch)

    def scaled(self) -> Config:
        """The same with `memory` and `fault_around` in bytes of the arch's pages: not to be scaled again."""
        from pykmm.machine import parse_size

        by = self.page_size // SMALL_PAGE
        if by == 1:
            return self
        return replace(self, memory=str(by * parse_size(self.memory)),
                       fault_around=str(by * parse_size(self.fault_around)))

    def machine(self, cpus: int = 2) -> Machine:
        """A machine like this with `cpus` CPUs; a context manager. Errors as :class:`pykmm.Machine`."""
        from pykmm.machine import Machine

        scaled = self.scaled()
        return Machine(arch=self.arch, strategy=self.strategy, cpus=cpus, memory=scaled.memory,
                       fault_around=scaled.fault_around, quirks=self.quirks)

    def __str__(self) -> str:
        words = [self.strategy]
        if self.arch != "x86":
            words.append(f"on {self.arch}")
        if self.quirks:
            words.append("with " + ", ".join(self.quirks))
        if self.memory_model is not None:
            words.append(f"under {self.memory_model}")
        return " ".join(words)


@dataclass(frozen=True)
class Scenario:
    """A named tape for the check engine, and what it shows."""

    name: str
    title: str                              #: one line
    #: A new tape each time. A parameter called `page` is the size of a page in bytes; without one the scenario is for
    #: arches with pages of 4 KiB. One called `table` is what a table of PTEs maps, in bytes.
    build: Callable[..., Tape]
    fixed: Config                           #: exhausting it finds nothing
    buggy: Config | None = None             #: without the fix; None: nothing is known to be wrong
    expected: frozenset[str] = frozenset()  #: kinds of violations, one of which `buggy` shows
    race: str = ""                          #: which known race it is: "R5"
    source: str = ""                        #: where it was described
    others: tuple[Config, ...] = ()         #: further configurations to try; nothing is promised
    plain: bool = False                     #: only a build that sees plain accesses (PYKMM_PLAIN=1) sees the bug
    needs: frozenset[str] = frozenset()     #: ARCH_TRAITS without which the bug cannot happen

    def __post_init__(self) -> None:
        unknown = self.expected - KINDS
        if unknown:
            raise ValueError(f"scenario {self.name!r}: unknown kinds {', '.join(sorted(unknown))}; "
                             f"known: {', '.join(sorted(KINDS))}")
        if self.needs - ARCH_TRAITS:
            raise ValueError(f"scenario {self.name!r}: unknown needs {', '.join(sorted(self.needs - ARCH_TRAITS))}; "
                             f"known: {', '.join(sorted(ARCH_TRAITS))}")
        if (self.buggy is None) != (not self.expected):
            raise ValueError(f"scenario {self.name!r}: a buggy configuration and the kinds it shows go together")

    def tape(self, page: int = SMALL_PAGE, table: int = 0) -> Tape:
        """A new tape for an arch with pages of `page` bytes, of which a table of PTEs maps `table` bytes (0: what the
        scenario has in mind). ValueError: it is not made for those."""
        parameters = inspect.signature(self.build).parameters
        if page != SMALL_PAGE and "page" not in parameters:
            raise ValueError(f"scenario {self.name!r} is written for pages of {SMALL_PAGE} bytes, not {page}: the "
                             "function that builds it takes no `page`")
        given = {"page": page} if "page" in parameters else {}
        if table and "table" in parameters:
            given["table"] = table
        return self.build(**given)

    def fits(self, page: int) -> bool:
        """Whether there is a tape for an arch with pages of `page` bytes."""
        return page == SMALL_PAGE or "page" in inspect.signature(self.build).parameters

    @property
    def shown(self) -> bool:
        """Whether this build can see the bug."""
        from pykmm_ext.engine.check import PLAIN_ACCESSES

        return not self.plain or PLAIN_ACCESSES

    def lacks(self, arch: str | None = None, memory_model: str | None = None) -> frozenset[str]:
        """Which of its needs an arch, under its own memory model or another one, does not meet: the buggy variant is
        clean there. By default those of what that runs on. ValueError: no such arch."""
        from pykmm.plugin import get_plugin_manager

        own = self.buggy or self.fixed
        made = get_plugin_manager().arches.make(arch or own.arch)
        geometry = made.geometry()
        has = {"rcu-tables" if geometry["rcu_table_free"] else "irqs-off-keep-tables"}
        if not geometry["tlb_broadcast"]:
            has.add("flush-ipi")
        if (memory_model or own.memory_model or made.memory_model) == "power":
            has.add("weak-memory")
        return self.needs - has

    @property
    def cpus(self) -> int:
        """Simulated CPUs that the tape needs."""
        return self.tape().program().nstreams


def register(registry: Registry, *scenarios: Scenario) -> None:
    """What a plugin's ``pykmm_register_scenarios`` calls."""
    for scenario in scenarios:
        registry.add(scenario.name, lambda scenario=scenario: scenario, scenario.title)


def get(name: str) -> Scenario:
    """The scenario of that name. ValueError lists the known ones."""
    from pykmm.plugin import get_plugin_manager

    found: Scenario = get_plugin_manager().scenarios.make(name)
    return found
