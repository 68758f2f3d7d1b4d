# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/trace.py: steps as rows."""
from __future__ import annotations

import json

import pytest
from litmus_programs import data_choice, enter_both, late_bug, load, lock_order, stale_read, store

from pykmm.checking.trace import Trace, make_trace
from pykmm_ext.engine.check import Exploration, Program
from pykmm_ext.engine.litmus import Litmus


def failing(program: Program, memory_model: str) -> Trace:
    """The trace of the first violation."""
    found = Exploration(program, memory_model=memory_model)
    found.run()
    [(kind, message, schedule, _, _)] = found.violations
    again = Exploration(program, memory_model=memory_model, explorer="replay")
    steps = again.replay(schedule)
    assert again.last == (kind, message)
    assert again.schedule == schedule
    return make_trace(steps, program.nr_vcpus, kind=kind, message=message, at_end=again.at_end)


def test_buffers_stand_in_the_column_of_their_cpu() -> None:
    trace = failing(enter_both(), "tso")
    flushes = [row for row in trace.rows if row.agent == "buffer"]
    assert {row.text for row in flushes} <= {"word 0: 0 -> 1 becomes visible", "word 1: 0 -> 1 becomes visible",
                                             "word 4: 0 -> 0 becomes visible", "word 5: 0 -> 0 becomes visible"}
    assert flushes
    for row in trace.rows:
        if row.agent == "cpu":
            assert row.function == "litmus.litmus_vcpu"
    text = trace.text()
    assert "Cpu 0" in text.splitlines()[0]
    assert "add word 3: 1 -> 2" in text
    assert "in litmus.litmus_vcpu" in text


def test_a_stale_load_says_what_is_newest() -> None:
    trace = failing(stale_read(), "power")
    [row] = [row for row in trace.rows if row.stale is not None]
    assert row.text == "load word 0 = 0"
    assert row.stale is not None
    newest, step = row.stale
    assert newest == 7
    assert step is not None
    assert trace.rows[step].text == "word 0: 0 -> 7 becomes visible"
    assert f"[stale: newest is 7, step {step}]" in trace.text()


def test_reads_from() -> None:
    program = Litmus([[store(0, 5)], [load(0, 0), {"op": "jump_eq", "reg": 0, "a": 5, "to": 3}, {"op": "end"},
                                      {"op": "assert_eq", "reg": 0, "a": 0}]])
    trace = failing(program, "sc")
    assert [row.text for row in trace.rows] == ["store word 0: 0 -> 5", "load word 0 = 5"]
    assert trace.rows[1].reads_from == 0
    assert "from step 0" in trace.text()


def test_a_deadlock_names_the_locks() -> None:
    trace = failing(lock_order(), "sc")
    assert trace.locks == ["Cpu 0 holds word 0", "Cpu 1 holds word 1"]
    assert [row.text for row in trace.causal()] == ["spin_lock word 0", "spin_lock word 1"]
    assert "held: word 0" in trace.text()


def test_the_causal_past_leaves_out_what_does_not_matter() -> None:
    """Thread 2 works on words that the others never look at."""
    steps = Exploration(late_bug(), explorer="replay").replay((2, 0, 2, 1, 0, 2, 0, 1))
    trace = make_trace(steps, 3, kind="assertion")
    assert trace.rows[-1].cpu != 2
    shown = trace.causal()
    assert {row.cpu for row in trace.rows} == {0, 1, 2}
    assert 2 not in {row.cpu for row in shown} or trace.rows[-1].object == "word 6"
    assert shown[-1] is trace.rows[-1]
    assert len(trace.text(full=True).splitlines()) > len(trace.text().splitlines())
    whole = make_trace(steps, 3, kind="assertion", at_end=True)
    assert len(whole.causal()) == len(whole.rows), "the final checks depend on everything"


@pytest.mark.parametrize("model", ["tso", "pso", "power"])
def test_a_store_that_became_visible_has_its_cause(model: str) -> None:
    """The flush that a load reads from needs the load before the store."""
    program = Litmus([[load(3, 0), store(0, 1)],
                      [load(0, 1), {"op": "jump_unless", "reg": 1, "to": 3}, {"op": "assert_eq", "reg": 1, "a": 0}]])
    trace = failing(program, model)
    assert [row.text for row in trace.causal()] == [
        "load word 3 = 0", "word 0: 0 -> 1 becomes visible", "load word 0 = 1"]


def test_long_traces_are_cut_and_choices_said() -> None:
    trace = failing(data_choice(), "sc")
    assert [row.text for row in trace.rows] == ["choice of 3: 2"]
    steps = Exploration(Litmus([[load(0, 0)] * 200]), explorer="replay").replay(())
    long = make_trace(steps, 1)
    assert len(long.rows) == 200
    assert "... 50 earlier steps ..." in long.text(max_rows=150)
    assert "earlier steps" not in long.text(max_rows=None)


def test_json_has_everything() -> None:
    trace = failing(enter_both(), "tso")
    values = json.loads(json.dumps(trace.to_json()))
    assert len(values["steps"]) == len(trace.rows)
    assert values["steps"][0]["in_causal_past"] in (True, False)
    assert {"step", "cpu", "text", "function", "callers", "old", "new", "held", "irqs_off"} <= values["steps"][0].keys()


def test_what_came_after_the_store_is_no_cause() -> None:
    """The store waits in the buffer while its CPU goes on to a load that nobody depends on."""
    program = Litmus([[load(3, 0), store(0, 1), load(4, 2)],
                      [load(0, 1), {"op": "jump_unless", "reg": 1, "to": 3}, {"op": "assert_eq", "reg": 1, "a": 0}]])
    again = Exploration(program, memory_model="tso", explorer="replay")
    trace = make_trace(again.replay((0, 0, 4, 1)), 2, kind="assertion")
    assert again.last is not None
    assert [row.text for row in trace.rows] == [
        "load word 3 = 0", "load word 4 = 0", "word 0: 0 -> 1 becomes visible", "load word 0 = 1"]
    assert [row.step for row in trace.causal()] == [0, 2, 3]


def test_of_a_long_livelock_one_turn_is_shown() -> None:
    """A loop that never ends: what comes before it, one turn, and how many there are."""
    program = Litmus([[store(0, 1), load(1, 0), load(2, 1), {"op": "jump_eq", "reg": 0, "a": 0, "to": 1}]])
    found = Exploration(program, memory_model="sc", max_steps=1001)
    found.run()
    [(kind, message, schedule, _, _)] = found.violations
    again = Exploration(program, memory_model="sc", explorer="replay", max_steps=1001)
    trace = make_trace(again.replay(schedule), 1, kind=kind, message=message)
    assert kind == "livelock"
    lines = trace.text().splitlines()
    assert [line.split()[0] for line in lines[2:-1] if line.strip()[0].isdigit()] == ["0", "1", "2"]
    assert lines[-1].strip() == "... the last 2 steps 499 times more, to step 1000 ..."
    assert len(trace.text(max_rows=None).splitlines()) > 1000
    trace.kind = "assertion"        # how it ended is at the end
    assert "earlier steps" in trace.text()
    assert "times more" not in trace.text()
