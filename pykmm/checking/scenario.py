# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: the smallest tapes that show a race, with a configuration that has the bug and one that has its fix.

Plugins register them (hook ``pykmm_register_scenarios``); ``pykmm list`` shows them. ::

    scenario = pykmm.checking.scenario.get("R5-vma-freed-at-once")
    tape = scenario.tape()
    with scenario.fixed.machine(cpus=scenario.cpus) as machine:
        machine.run(tape)
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykmm.machine import Machine
    from pykmm.plugin import Registry
    from pykmm.tape import Tape

__all__ = ["KINDS", "MEMORY_MODELS", "Config", "Scenario", "get", "register"]

#: Kinds of violations that the check engine reports.
KINDS = frozenset({
    "use-after-free", "stale-tlb", "wrong-value", "deadlock", "livelock", "lock-order", "sleep-in-atomic",
    "rcu-not-held", "data-race", "leak", "broken-structure", "assertion", "lock-held", "crash", "pinned-page",
})
#: What the check engine can put under the primitives; None in a Config: what the arch has.
MEMORY_MODELS = ("sc", "tso", "pso", "power")


@dataclass(frozen=True)
class Config:
    """What a scenario runs on. Names are those of plugins; ``strategy`` and ``arch`` may carry options in brackets."""

    strategy: str = "spf"
    arch: str = "x86"
    quirks: tuple[str, ...] = ()            #: fixes of the mm to do without (``Machine(quirks=...)``)
    memory_model: str | None = None         #: one of MEMORY_MODELS; None = the arch's own
    preemptions: int | None = None          #: the space is searched up to this many preemptions; None = all of it
    memory: str = "1M"                      #: simulated memory
    fault_around: str = "4K"                #: one page: off

    def __post_init__(self) -> None:
        if self.memory_model is not None and self.memory_model not in MEMORY_MODELS:
            raise ValueError(f"unknown memory model {self.memory_model!r}; known: {', '.join(MEMORY_MODELS)}")
        if self.preemptions is not None and self.preemptions < 0:
            raise ValueError(f"preemptions must not be negative, not {self.preemptions}")

    def machine(self, cpus: int = 2) -> Machine:
        """A machine like this with `cpus` CPUs; a context manager. Errors as :class:`pykmm.Machine`."""
        from pykmm.machine import Machine

        return Machine(arch=self.arch, strategy=self.strategy, cpus=cpus, memory=self.memory,
                       fault_around=self.fault_around, quirks=self.quirks)

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
    build: Callable[[], Tape]               #: a new tape each time
    fixed: Config                           #: exhausting it finds nothing
    buggy: Config | None = None             #: without the fix; None: nothing is known to be wrong
    expected: frozenset[str] = frozenset()  #: kinds of violations, one of which `buggy` shows
    race: str = ""                          #: which known race it is: "R5"
    source: str = ""                        #: where it was described
    others: tuple[Config, ...] = ()         #: further configurations to try; nothing is promised

    def __post_init__(self) -> None:
        unknown = self.expected - KINDS
        if unknown:
            raise ValueError(f"scenario {self.name!r}: unknown kinds {', '.join(sorted(unknown))}; "
                             f"known: {', '.join(sorted(KINDS))}")
        if (self.buggy is None) != (not self.expected):
            raise ValueError(f"scenario {self.name!r}: a buggy configuration and the kinds it shows go together")

    def tape(self) -> Tape:
        """A new tape."""
        return self.build()

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

    found = get_plugin_manager().scenarios.make(name)
    assert isinstance(found, Scenario)
    return found
