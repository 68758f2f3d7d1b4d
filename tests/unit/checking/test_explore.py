# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/explore.py: the report of pykmm.explore() is the one of pykmm.check()."""
from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from explore_programs import increments, lock_order, spinning

import pykmm
from pykmm.checking.checker import replay_token as replay_of_check
from pykmm.checking.explore import ExploreContext, replay_token
from pykmm.checking.schedule import TokenError, decode
from pykmm.testing import assert_checked


def test_a_clean_report() -> None:
    report = pykmm.explore(increments)
    assert isinstance(report, pykmm.CheckReport)
    assert_checked(report)
    assert set(report.outcomes) == {(1,), (2,), (3,)}
    assert sum(report.outcomes.values()) == report.executions
    assert report.footer.startswith("exhaustive under sequential consistency, 3 vCPUs: ")
    assert json.loads(json.dumps(report.to_json()))["outcomes"] == [
        [repr(value), report.outcomes[value]] for value in sorted(report.outcomes)]


def test_a_violation_in_full() -> None:
    report = pykmm.explore(lock_order)
    [violation] = report.violations
    assert isinstance(violation, pykmm.Violation)
    assert violation.kind == "deadlock"
    assert violation.preemptions == 1
    assert violation.minimal == "the fewest possible"
    assert violation.locks == ["Cpu 0 holds a", "Cpu 1 holds b"]
    text = str(report)
    for part in ("spin_lock a", "in explore_programs.py:25", "at the end: Cpu 0 holds a", violation.token):
        assert part in text
    assert report.replay() == violation.trace
    assert "explore_programs.py:25 both" in report.to_html()
    assert violation.trace is not None
    assert violation.trace.rows[0].function == "explore_programs.py:25 both"


def test_the_token_leads_back() -> None:
    violation = pykmm.explore(lock_order).violations[0]
    assert replay_token(violation.token, lock_order) == violation.trace
    with pytest.raises(TokenError, match="is of scenario 'lock_order', not of 'increments'"):
        replay_token(violation.token, increments)
    with pytest.raises(TokenError, match="have changed since"):
        replay_token(replace(decode(violation.token), digest="00000000"), lock_order)
    with pytest.raises(TokenError, match=r"of pykmm\.explore"):
        replay_of_check(violation.token)
    with pytest.raises(TokenError, match=r"not a replay token of pykmm\.explore"):
        replay_token(replace(decode(violation.token), options={}), lock_order)


def test_a_token_knows_what_its_program_is_closed_over() -> None:
    def make(*names: str) -> Callable[[ExploreContext], object]:
        def program(x: ExploreContext) -> None:
            a, b = (x.spin_lock(name) for name in names)

            def both(cpu, first, second):
                first.lock(cpu)
                second.lock(cpu)

            x.vcpu(both, a, b)
            x.vcpu(both, b, a)
        return program

    token = pykmm.explore(make("a", "b")).violations[0].token
    assert replay_token(token, make("a", "b")).kind == "deadlock"
    with pytest.raises(TokenError, match="have changed since"):
        replay_token(token, make("a", "c"))


def test_a_livelock_ends_where_it_did() -> None:
    report = pykmm.explore(spinning, max_steps=50)
    [violation] = report.violations
    assert violation.kind == "livelock"
    assert report.replay() == violation.trace
    assert replay_token(violation.token, spinning) == violation.trace
    with pytest.raises(TokenError, match="steps=x is no number"):
        replay_token(replace(decode(violation.token), options={"explore": "python", "steps": "x"}), spinning)


def test_not_minimised() -> None:
    [violation] = pykmm.explore(lock_order, minimised=False, explorer="random", seed=3).violations
    assert not violation.minimal
    assert replay_token(violation.token, lock_order).kind == "deadlock"


def test_bounds_and_samples() -> None:
    report = pykmm.explore(increments, preemptions=1)
    assert report.bounded_complete and not report.complete
    assert report.footer.startswith("complete up to 1 preemption under")
    report = pykmm.explore(increments, explorer="pct")
    assert report.executions == 1000
    assert "limit of executions" in report.footer


def test_executors() -> None:
    alone = pykmm.explore(increments, memory_model="tso")
    with ThreadPoolExecutor(2) as executor:
        threads = pykmm.explore(increments, memory_model="tso", executor=executor)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as executor:
        processes = pykmm.explore(increments, memory_model="tso", executor=executor)
        with pytest.raises(ValueError, match="cannot be sent to other processes"):
            pykmm.explore(lambda x: [increments(x)], executor=executor)
        again = pykmm.explore(lock_order, executor=executor)
    for report in (threads, processes):
        assert (report.outcomes, report.executions, report.complete) == (alone.outcomes, alone.executions, True)
    assert again.replay().kind == "deadlock"
    assert pickle.loads(pickle.dumps(again)).replay() == again.replay()


def test_repr_is_short_and_str_is_not() -> None:
    report = pykmm.explore(lock_order)
    assert repr(report).startswith("<CheckReport lock_order: deadlock: ")
    assert len(repr(report).splitlines()) == 1
    assert "spin_lock a" in str(report)
