# SPDX-License-Identifier: GPL-2.0-only
"""The check engine: virtual CPUs under a controlled scheduler, and the search for schedules."""
from collections.abc import Sequence
from typing import TypedDict

MODELS: dict[str, int]
EXPLORERS: dict[str, int]

Prefix = tuple[tuple[int, int, int, int, int, int, int, int], ...]

class Step(TypedDict):
    step: int
    agent: int
    cpu: int
    op: str
    sub: int
    order: int
    width: int
    address: int
    object: str
    old: int
    new: int
    result: int
    newest: int
    reads_from: int
    stale: int
    choice: int
    pending: int
    frames: list[int]
    held: list[int]

class Program:
    @property
    def nr_vcpus(self) -> int: ...

class Exploration:
    program: Program
    memory_model: str
    explorer: str
    def __init__(
        self, program: Program, *, memory_model: str = "sc", explorer: str = "dpor", seed: int = 0,
        preemptions: int = -1, max_steps: int = 100000, depth: int = 3, schedule: Sequence[int] = (),
        prefix: Prefix = (), graphs: bool = False, expand: int = 0,
        watchdog: float = 10.0,
    ) -> None: ...
    def run(self, max_executions: int = 0, max_seconds: float = 0.0, stop_at_violation: bool = True) -> None: ...
    @property
    def executions(self) -> int: ...
    @property
    def blocked(self) -> int: ...
    @property
    def redundant(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def fallbacks(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def complete(self) -> bool: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def diverged(self) -> bool: ...
    @property
    def outcomes(self) -> dict[int, int]: ...
    @property
    def violations(self) -> list[tuple[str, str, tuple[int, ...], int, int]]: ...
    def agent_name(self, agent: int) -> str: ...
    def replay(self, schedule: Sequence[int]) -> list[Step]: ...
    @property
    def last(self) -> tuple[str, str] | None: ...
    @property
    def at_end(self) -> bool: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def schedule(self) -> tuple[int, ...]: ...
    def split(self, depth: int) -> list[Prefix]: ...
