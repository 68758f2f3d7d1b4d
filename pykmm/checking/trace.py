# SPDX-License-Identifier: GPL-2.0-only
"""The steps of one execution as a person reads them: a row per step, a column per CPU.

What a store buffer or an interrupt handler does stands in the column of its CPU. Between two steps a CPU's plain code
runs undisturbed, so a row says everything that other CPUs could see or disturb.
"""
from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pykmm.checking.symbols import callers

if TYPE_CHECKING:
    from pykmm.checking.steps import Step

__all__ = ["MAX_ROWS", "Row", "Trace", "make_trace"]

#: Rows of a text report; a longer trace is shown from its end.
MAX_ROWS = 150
_COLUMN = {1: 80, 2: 60, 3: 44}     # widest column of a CPU by their number, in characters
_NARROW = 34
_NOTES = 44

_RMW = ("xchg", "cmpxchg", "add", "and", "or")
_LOCK = ("spin_lock", "spin_trylock", "spin_unlock", "down_read", "down_read_trylock", "up_read", "down_write",
         "down_write_trylock", "up_write", "downgrade_write")
_ORDER = ("", "acquire ", "release ", "")
_READS = ("load", "await")


class Function(Protocol):
    """Where a step was taken: ``pykmm.checking.symbols.Symbol``, or a line of Python."""

    @property
    def primitive(self) -> bool:
        """Its caller says more."""


@dataclass(frozen=True)
class Row:
    """One step."""

    step: int                       #: number, from 0
    cpu: int                        #: the column
    agent: str                      #: "cpu"; "buffer": a store becomes visible; "irq": an interrupt handler runs;
                                    #: "barrier": smp_mb_heavy() of another CPU makes this one execute a full barrier
    op: str                         #: load, store, rmw, lock, ...
    text: str                       #: "store pte 3: 0 -> 0x67"
    function: str                   #: "memory.set_pte": the innermost function of what is checked; of a store that
                                    #: becomes visible, where it was made; "" = not known
    callers: tuple[str, ...]        #: its callers, inner ones first
    object: str                     #: what was accessed, by name
    address: int                    #: where it lies; 0 = nothing was accessed
    old: int                        #: value before
    new: int                        #: value after; of a load: what it returned
    reads_from: int | None          #: the step that stored what was found; None = an initial value
    stale: tuple[int, int | None] | None    #: a load that returned an older value: the newest one, and its step
    held: tuple[str, ...]           #: locks that the CPU holds after the step
    irqs_off: bool

    @property
    def notes(self) -> list[str]:
        """What the text report says beside the step, without locks and IRQs."""
        found = []
        if self.reads_from is not None and self.op in (*_READS, "rmw"):
            found.append(f"from step {self.reads_from}")
        if self.stale is not None:
            newest, step = self.stale
            found.append(f"[stale: newest is {number(newest)}{'' if step is None else f', step {step}'}]")
        return found


def number(value: int) -> str:
    """Small numbers in decimal, others in hexadecimal."""
    return str(value) if value < 1024 else hex(value)


def _change(old: int, new: int) -> str:
    return f"{number(old)} -> {number(new)}"


def _sentence(step: Step, agent: str, name: str) -> str:
    op, old, new = step["op"], step["old"], step["new"]
    if agent == "buffer":
        return f"{name}: {_change(old, new)} becomes visible"
    if agent == "irq":
        return "an interrupt handler runs" if op == "handler" else f"{op} {name}"
    if agent == "barrier":
        return "full barrier, for another CPU's smp_mb_heavy()"
    if op == "load":
        return f"{_ORDER[step['order'] & 3]}load {name} = {number(step['result'])}"
    if op == "await":
        return f"await {name} = {number(step['result'])}"
    if op == "store":
        return f"{_ORDER[step['order'] & 3]}store {name}: {_change(old, new)}"
    if op == "rmw":
        what = _RMW[step["sub"]] if step["sub"] < len(_RMW) else op
        failed = " fails" if what == "cmpxchg" and old == new else ""
        return f"{what} {name}: {_change(old, new)}{failed}"
    if op in ("lock", "unlock"):
        what = _LOCK[step["sub"]] if step["sub"] < len(_LOCK) else op
        return f"{what} {name}{' fails' if 'trylock' in what and not step['result'] else ''}"
    if op == "choose":
        return f"choice of {step['sub']}: {step['result']}" if step["sub"] > 1 else "barrier: the store buffer is empty"
    return {"irq-off": "IRQs off", "irq-on": "IRQs on", "ipi-send": f"send an IPI ({name})",
            "ipi-wait": "all IPIs are handled", "membarrier-send": "smp_mb_heavy: every CPU is to execute one",
            "membarrier-wait": "smp_mb_heavy: every CPU has"}.get(op, f"{op} {name}".rstrip())


def _writes(step: Step) -> bool:
    if step["op"] in _READS or not step["address"]:
        return False
    return not (step["op"] == "lock" and "trylock" in _LOCK[min(step["sub"], 9)] and not step["result"])


def _causes(steps: Sequence[Step], ncpus: int) -> list[set[int]]:
    """Per step the steps that it follows directly: of its agent, of the words it shares, of its interrupts.

    A superset of what the engine orders where several stores of one CPU wait at a time and may pass each other.
    """
    causes: list[set[int]] = []
    last: dict[int, int] = {}               # agent -> step
    writer: dict[int, int] = {}             # word -> step
    readers: dict[int, list[int]] = {}      # word -> steps since
    issued: dict[int, list[tuple[int, int]]] = {}   # cpu -> (step, stores issued before it)
    flushed: dict[int, int] = {}
    sends: list[int] = []
    handlers: list[int] = []
    heavy: list[int] = []
    barriers: list[int] = []
    for i, step in enumerate(steps):
        before: set[int] = set()
        agent, cpu = step["agent"], step["cpu"]
        if agent in last:
            before.add(last[agent])
        if step["op"] == "membarrier":
            before.update(heavy)
            before.update(last[a] for a in last if steps[last[a]]["cpu"] == cpu)
            barriers.append(i)
        elif agent >= 2 * ncpus:
            count = flushed[cpu] = flushed.get(cpu, 0) + 1
            issuers = [at for at, stores in issued.get(cpu, ()) if stores < count]
            if issuers:
                before.add(issuers[-1])
        elif agent >= ncpus:
            before.update(sends)
            handlers.append(i)
        else:
            issued.setdefault(cpu, []).append((i, step["pending"] + flushed.get(cpu, 0)))
            if step["op"] == "ipi-wait":
                before.update(handlers)
            if step["op"] == "membarrier-wait":
                before.update(barriers)
            if step["op"] == "ipi-send":
                sends.append(i)
            if step["op"] == "membarrier-send":
                heavy.append(i)
            if step["op"] in ("choose", "rmw", "lock", "ipi-send", "membarrier-send"):  # the buffer was empty
                before.update(last[a] for a in last if a >= 2 * ncpus and steps[last[a]]["cpu"] == cpu)
        if step["address"]:
            word = step["address"] >> 3
            if _writes(step):
                before.update(readers.pop(word, ()))
                if word in writer:
                    before.add(writer[word])
                writer[word] = i
            else:
                found = step["reads_from"] if step["stale"] else writer.get(word, -1)
                if found >= 0:
                    before.add(found)
                readers.setdefault(word, []).append(i)
        last[agent] = i
        causes.append(before)
    return causes


@dataclass
class Trace:
    """The steps of an execution, in order, and how it ended."""

    ncpus: int
    rows: list[Row]
    past: frozenset[int]            #: the steps that the end depends on
    locks: list[str]                #: per CPU, where there is something to say: locks held and IRQs at the end
    kind: str = ""                  #: of the violation; "" = it ended well
    message: str = ""

    def causal(self) -> list[Row]:
        """The rows without steps that the end does not depend on."""
        return [row for row in self.rows if row.step in self.past]

    def text(self, *, full: bool = False, max_rows: int | None = MAX_ROWS) -> str:
        """A table of fixed width. `full`: steps on which the end does not depend, too. `max_rows`: the last ones.

        Of a livelock longer than that one turn of its loop is shown.
        """
        rows = self.rows if full else self.causal()
        hidden = len(self.rows) - len(rows)
        again = ""
        if self.kind == "livelock" and max_rows is not None and len(rows) > max_rows:
            turn, turns = _loop(rows)
            if turn:
                last = rows[-1].step
                rows = rows[:len(rows) - turn * (turns - 1)]
                again = f"      ... the last {turn} steps {turns - 1} times more, to step {last} ..."
        cut = 0 if max_rows is None else max(len(rows) - max_rows, 0)
        lines = _table(rows[cut:], self.ncpus)
        if cut:
            lines.insert(2, f"      ... {cut} earlier steps ...")
        if again:
            lines.append(again)
        if hidden:
            lines.append(f"      ({hidden} steps that the end does not depend on are not shown)")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Everything, for json.dump()."""
        return {
            "cpus": self.ncpus, "locks": self.locks,
            "steps": [{**asdict(row), "in_causal_past": row.step in self.past} for row in self.rows],
        }


def _loop(rows: Sequence[Row]) -> tuple[int, int]:
    """How many rows at the end are one turn of a loop, and how many turns of it there are; (0, 0): no loop.

    What is counted in a loop differs from turn to turn: values do not matter.
    """
    keys = [(row.cpu, row.agent, row.op, row.object, row.function) for row in rows]
    for turn in range(1, len(keys) // 3 + 1):
        same = 0
        while same < len(keys) - turn and keys[-1 - same] == keys[-1 - same - turn]:
            same += 1
        if same >= 2 * turn:
            return turn, same // turn + 1
    return 0, 0


def _table(rows: Iterable[Row], ncpus: int) -> list[str]:
    cells: list[tuple[str, int, list[str], list[str]]] = []
    function: dict[tuple[int, str], str] = {}
    held: dict[int, tuple[tuple[str, ...], bool]] = {}
    column = _COLUMN.get(ncpus, _NARROW)
    for row in rows:
        lines = [row.text]
        if row.function and row.function != function.get((row.cpu, row.agent)):
            lines.append(f"  {'stored in' if row.agent == 'buffer' else 'in'} {row.function}")
            function[row.cpu, row.agent] = row.function
        notes = row.notes
        state = (row.held, row.irqs_off)
        if state != held.get(row.cpu, ((), False)):
            if row.held != held.get(row.cpu, ((), False))[0]:
                notes.append(f"held: {', '.join(row.held) or 'nothing'}")
            if row.irqs_off != held.get(row.cpu, ((), False))[1]:
                notes.append("IRQs off" if row.irqs_off else "IRQs on")
            held[row.cpu] = state
        wrapped = [part for line in lines for part in textwrap.wrap(line, column, subsequent_indent="    ") or [""]]
        cells.append((str(row.step), row.cpu, wrapped, textwrap.wrap("; ".join(notes), _NOTES)))
    widths = [max([len(f"Cpu {cpu}"), *(len(line) for _, c, lines, _ in cells if c == cpu for line in lines)])
              for cpu in range(ncpus)]
    head = " step  " + "  ".join(f"{f'Cpu {cpu}':<{width}}" for cpu, width in enumerate(widths))
    table = [head.rstrip(), " " + "-" * (len(head) - 1)]
    for step, cpu, lines, notes in cells:
        for i in range(max(len(lines), len(notes))):
            columns = "  ".join(f"{lines[i] if c == cpu and i < len(lines) else '':<{width}}"
                                for c, width in enumerate(widths))
            note = f"  {notes[i]}" if i < len(notes) else ""
            table.append(f"{step if i == 0 else '':>5}  {columns}{note}".rstrip())
    return table


def make_trace(steps: Sequence[Step], ncpus: int, *, kind: str = "", message: str = "", at_end: bool = False,
               functions: Callable[[list[int]], Sequence[Function]] = callers) -> Trace:
    """Rows from what ``Exploration.replay()`` returned.

    `at_end`: the final checks found it, so that it depends on everything; so does a deadlock. `functions`: what a
    step's "frames" mean, innermost first.
    """
    names: dict[int, str] = {}      # of locks; the same address is the same lock within one execution
    held: dict[int, tuple[str, ...]] = {}
    irqs_off: dict[int, bool] = {}
    writer: dict[int, int] = {}
    unnamed: dict[str, str] = {}
    rows: list[Row] = []
    for step in steps:
        agent = ("cpu" if step["agent"] < ncpus else "irq" if step["agent"] < 2 * ncpus
                 else "barrier" if step["op"] == "membarrier" else "buffer")
        cpu, name = step["cpu"], step["object"]
        if name.startswith("0x"):   # nobody knows it: a number that is the same in every process
            name = unnamed.setdefault(name, f"object #{len(unnamed)}")
        if step["op"] in ("lock", "unlock"):
            names[step["address"]] = name
        if step["address"] and agent == "cpu":
            held[cpu] = tuple(names.get(lock, hex(lock)) for lock in step["held"])
        if step["op"] in ("irq-off", "irq-on"):
            irqs_off[cpu] = step["op"] == "irq-off"
        stale = None
        if step["stale"]:
            stale = (step["newest"], writer.get(step["address"] >> 3))
        if _writes(step):
            writer[step["address"] >> 3] = step["step"]
        stack = functions(step["frames"]) if agent != "irq" else []
        inner = str(stack[0]) if stack else ""
        if stack and stack[0].primitive:
            outer = next((symbol for symbol in stack if not symbol.primitive), None)
            inner += f" < {outer}" if outer else ""
        rows.append(Row(
            step["step"], cpu, agent, step["op"], _sentence(step, agent, name), inner,
            tuple(str(symbol) for symbol in stack[1:]), name, step["address"], step["old"],
            step["result"] if step["op"] in _READS else step["new"],
            step["reads_from"] if step["reads_from"] >= 0 else None, stale, held.get(cpu, ()),
            irqs_off.get(cpu, False)))
    everything = at_end or kind in ("", "deadlock", "livelock", "leak") or not steps
    past = set(range(len(steps)))
    if not everything:
        causes = _causes(steps, ncpus)
        past, left = set(), [len(steps) - 1]
        while left:
            step_number = left.pop()
            if step_number not in past:
                past.add(step_number)
                left += causes[step_number]
    locks = []
    for cpu in range(ncpus):
        if held.get(cpu) or irqs_off.get(cpu):
            what = f"holds {', '.join(held[cpu])}" if held.get(cpu) else "holds nothing"
            locks.append(f"Cpu {cpu} {what}{', IRQs off' if irqs_off.get(cpu) else ''}")
    return Trace(ncpus, rows, frozenset(past), locks, kind, message)
