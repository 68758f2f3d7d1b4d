# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/checker.py, report.py, html.py: pykmm.check() and what it returns."""
from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from litmus_programs import enter_both, increments5, late_bug, lock_order, two_bugs

import pykmm
from pykmm.checking.checker import replay_token
from pykmm.checking.html import page
from pykmm.checking.schedule import TokenError, decode
from pykmm.testing import assert_checked


def test_nothing_found() -> None:
    report = pykmm.check(increments5, memory_model="tso")
    assert report.ok
    assert report.complete
    assert report.footer == "exhaustive under TSO, 5 vCPUs: 120 executions"
    assert "no violation found" in str(report)
    assert "no violation" in repr(report)
    assert_checked(report)
    with pytest.raises(ValueError, match="no violation to replay"):
        report.replay()


def test_a_violation() -> None:
    report = pykmm.check(lock_order, memory_model="sc")
    assert not report.ok
    assert not report.complete
    [violation] = report.violations
    assert violation.kind == "deadlock"
    assert "Cpu 0 waits for the spinlock word 1, held by Cpu 1" in violation.message
    assert violation.preemptions == 1
    assert violation.locks == ["Cpu 0 holds word 0", "Cpu 1 holds word 1"]
    text = str(report)
    for part in ("violation: deadlock: Cpu 0 waits", "spin_lock word 0", "at the end: Cpu 0 holds word 0",
                 "1 preemption (the fewest possible)", f"replay: {violation.token}",
                 "not exhaustive (stopped at the first violation) under sequential consistency, 2 vCPUs"):
        assert part in text
    assert report.replay(violation) == violation.trace == report.replay()
    table = text.partition("step")[2].partition("at the end")[0]
    assert max(map(len, table.splitlines())) < 160


def test_all_violations() -> None:
    report = pykmm.check(two_bugs, memory_model="sc", stop_at_violation=False)
    assert report.complete
    assert {violation.kind for violation in report.violations} == {"deadlock", "assertion"}
    assert sum(violation.count for violation in report.violations) == report.failed
    assert "violation 1 of 2: " in str(report)
    assert "exhaustive under sequential consistency" in report.footer
    assert "with a violation" in report.footer
    for violation in report.violations:
        assert report.replay(violation).kind == violation.kind


def test_an_executor_finds_the_same() -> None:
    alone = pykmm.check(two_bugs, memory_model="tso", stop_at_violation=False)
    with ThreadPoolExecutor(2) as executor:
        spread = pykmm.check(two_bugs, memory_model="tso", stop_at_violation=False, executor=executor)

    def essence(report: pykmm.CheckReport) -> object:
        return (report.executions, report.outcomes, report.complete,
                sorted((v.kind, v.message, v.preemptions) for v in report.violations))
    assert essence(alone) == essence(spread)


def test_bounds() -> None:
    report = pykmm.check(late_bug, memory_model="sc", preemptions=1)
    assert report.ok
    assert not report.complete
    assert report.bounded_complete
    assert report.footer.startswith("complete up to 1 preemption under sequential consistency, 3 vCPUs: ")
    assert_checked(report)
    report = pykmm.check(late_bug, memory_model="sc", preemptions=2)
    assert [violation.preemptions for violation in report.violations] == [2]
    assert pykmm.check(increments5, memory_model="sc", preemptions=9).complete, "the bound left nothing out"


def test_samples_are_never_exhaustive() -> None:
    report = pykmm.check(enter_both, memory_model="sc", explorer="pct", seed=5, max_executions=100)
    assert report.footer == ("not exhaustive (limit of executions reached; explorer pct, seed 5) under sequential "
                             "consistency, 2 vCPUs: 100 executions")
    assert_checked(report, complete=False)
    with pytest.raises(pytest.fail.Exception, match="not exhaustive"):
        assert_checked(report)


def test_assert_checked_shows_the_trace() -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        assert_checked(pykmm.check(lock_order, memory_model="sc"))
    assert str(caught.value).splitlines()[0] == "deadlock"      # what a test runner's last lines show
    assert "spin_lock word 1" in str(caught.value)
    assert "replay: pykmm1:" in str(caught.value)


def test_the_token_leads_back() -> None:
    report = pykmm.check(enter_both)
    assert report.memory_model == "tso"
    [violation] = report.violations
    assert replay_token(violation.token, enter_both) == violation.trace
    token = decode(violation.token)
    assert token.schedule == violation.schedule
    with pytest.raises(TokenError, match="is of scenario 'enter_both', not of 'lock_order'"):
        replay_token(token, lock_order)
    with pytest.raises(TokenError, match="have changed since"):
        replay_token(replace(token, digest="00000000"), enter_both)
    with pytest.raises(ValueError, match="unknown scenario 'enter_both'"):
        replay_token(token)
    with pytest.raises(ValueError, match="cannot be followed"):
        replay_token(replace(token, schedule=(1, 0, *token.schedule, 0, 0, 0, 0, 0, 0, 0, 0)), enter_both)


class Checker(html.parser.HTMLParser):
    """Every element is closed, and nothing is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "data"} & {name for name, _ in attrs}
        assert tag not in ("script", "link", "img", "iframe")
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html() -> None:
    reports = [pykmm.check(lock_order, memory_model="sc"), pykmm.check(increments5, memory_model="sc")]
    for text in (reports[0].to_html(), page(reports)):
        checker = Checker()
        checker.feed(text)
        assert not checker.open
        assert "spin_lock word 0" in text
        assert "litmus.litmus_vcpu" in text
    reports[0].violations[0].message = "<b>&"
    assert "&lt;b&gt;&amp;" in reports[0].to_html()
    assert reports[0].violations[0].token in reports[0].to_html()


def test_json() -> None:
    values = json.loads(json.dumps(pykmm.check(two_bugs, memory_model="tso", stop_at_violation=False).to_json()))
    assert values["complete"] is True
    assert values["ok"] is False
    assert len(values["violations"]) == 2
    for violation in values["violations"]:
        assert re.fullmatch(r"pykmm1:\S+", violation["token"])
        assert len(violation["trace"]["steps"]) == len(violation["schedule"])


def test_reports_can_be_sent_to_other_processes() -> None:
    import pickle

    report = pykmm.check(lock_order, memory_model="sc")
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.replay() == report.replay()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"variant": "broken"}, "unknown variant 'broken'; known: fixed, buggy"),
    ({"explorer": "best"}, "unknown explorer 'best'; known: dpor, dfs, random, pct"),
    ({"memory_model": "arm"}, "unknown memory model 'arm'; known: sc, tso, pso, power"),
    ({"strategy": "spf"}, "are for tapes and scenarios"),
])
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pykmm.check(increments5, **arguments)  # type: ignore[arg-type]


def test_what_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="unknown scenario 'nope'; 'pykmm list scenarios' shows all "):
        pykmm.check("nope")
    with pytest.raises(TypeError, match="not int"):
        pykmm.check(3)  # type: ignore[arg-type]


def test_import_is_cheap() -> None:
    """`import pykmm` and naming its functions costs neither numpy nor the engine."""
    code = "import sys, pykmm, pykmm.checking.cli; assert not {'numpy', 'pykmm_ext.engine.check'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_replay_commands_are_quoted_for_the_shell() -> None:
    report = pykmm.check(enter_both)
    report.violations = [replace(report.violations[0], token="pykmm1:tape;arch=ppc64:0")]
    assert "pykmm check --replay &#x27;pykmm1:tape;arch=ppc64:0&#x27;</code>" in page([report])
