# SPDX-License-Identifier: GPL-2.0-only
"""The conformance kit: every built-in strategy passes it on every arch, and what is broken on purpose does not."""
from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import pykmm
from pykmm.cli import app
from pykmm.conformance.checks import ARCH_CHECKS, STRATEGY_CHECKS
from pykmm.conformance.subject import EFFORTS
from pykmm.plugin import make_plugin_manager
from pykmm.testing import check_arch_conformance, check_conformance
from pykmm_ext.conformance_test import ARCH_FAULTS, FAULTS, BrokenArch, BrokenStrategy
from pykmm_ext.strategy_test import Mistake

MANAGER = make_plugin_manager(third_party=False)
#: As posted it is wrong, which is what it is for: with its fixes it must pass.
CORRECTED = {"spf-rfc5": "spf-rfc5[fixes=all]"}
PAIRS = [(CORRECTED.get(strategy, strategy), arch)
         for arch in MANAGER.arches.names() for strategy in MANAGER.strategies.names()]


@pytest.mark.parametrize(("strategy", "arch"), PAIRS)
def test_every_strategy_on_every_arch(strategy: str, arch: str) -> None:
    report = check_conformance(strategy, arch, effort="quick")
    assert report.ok, str(report)
    assert [result.status for result in report.results] == ["pass"] * len(STRATEGY_CHECKS), str(report)


def test_the_posted_series_fails() -> None:
    report = check_conformance("spf-rfc5", "x86-paravirt", effort="quick")
    assert not report.ok
    catalogue = report["catalogue"]
    assert catalogue.status == "fail"
    # The token of the report leads back to the violation.
    failure = catalogue.failures[0]
    assert failure.check is not None
    *command, token = shlex.split(failure.replay)       # as a shell reads it: there are semicolons in it
    assert command == ["replay:", "pykmm", "check", "--replay"]
    done = CliRunner().invoke(app, ["check", "--replay", token])
    assert failure.check.violations[0].kind in done.output, done.output
    assert failure.check.replay().kind == failure.check.violations[0].kind


#: Fault -> the check that has to find it, and words of its report.
EXPECTED = {
    "no-recheck": ("catalogue", ["use-after-free"]),
    "lying-counters": ("counters", ["went through handle_fault_mmap_sem(), retried is 0", "counted as successes"]),
    "forgets-attempts": ("counters", ["attempts is", "the machine took"]),
    "wrong-code": ("basics", ["a write to a page that may only be read: SIGSEGV MAPERR, expected SIGSEGV ACCERR"]),
    "never-retries": ("catalogue", ["returned errno 14, expected 0"]),
    "any-access": ("basics", ["a write to a page that may only be read: PluginError: ", "the access still fault"]),
    "keeps-lock": ("catalogue", ["lock-held", "locks are still held"]),
    "leaks-vma": ("leaks", ["leaked: ", "vm_area_structs"]),
    "no-table": ("interface", ["has set no strategy_ops"]),
    "short-table": ("interface", ["no handle_fault in the strategy_ops of 24 bytes"]),
    "no-handler": ("interface", ["no handle_fault"]),
    "half-a-pair": ("interface", ["vma_write_begin without vma_write_end"]),
    "same-name-twice": ("interface", ["counter names that stand for two counters: retried"]),
    "two-counters": ("interface", ["2 counter names"]),
    "other-name": ("interface", ["ops.name is 'somebody else'"]),
}


def test_a_check_that_cannot_be_made_fails_by_what_forbids_it() -> None:
    """The other checks build on the table: where it is wrong, none of them may say that all is well."""
    report = check_conformance(lambda: Mistake("downgrade"), effort="quick", only=["catalogue"])
    assert not report.ok
    assert [(result.name, result.status) for result in report.results] == [("interface", "fail"), ("catalogue", "skip")]
    assert "FAILED: interface; not made: catalogue" in str(report)
    report = check_conformance("mmap_sem", effort="quick", only=["basics"])
    assert [result.name for result in report.results] == ["basics"]


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_broken_strategy_fails_and_the_report_says_why(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    # One of them never comes back.
    monkeypatch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], basics=2.0))
    check, words = EXPECTED[fault]
    report = check_conformance(lambda: BrokenStrategy(fault), effort="quick", only=("interface", "basics", check))
    assert not report.ok
    assert report.name == f"broken-{fault}"
    assert report[check].status == "fail", str(report)
    text = str(report)
    for word in words:
        assert word in text, text
    assert "replay: " in text
    assert "FAILED: " in text


def test_every_fault_is_expected_somewhere() -> None:
    assert set(EXPECTED) | {"none", "does-nothing"} == set(FAULTS)


def test_the_strategy_that_the_broken_ones_are_made_from_passes() -> None:
    report = check_conformance(BrokenStrategy, effort="quick")
    assert report.ok, str(report)
    assert report.name == "broken-none"


def test_what_would_hang_is_not_made() -> None:
    report = check_conformance("spf-rfc5[recheck=off]", effort="quick")
    assert report["catalogue"].status == "fail"
    assert report["stress"].status == "skip"
    assert "use-after-free" in report["stress"].detail
    assert "not made: " in str(report)


def test_semantics_show_the_shortest_program() -> None:
    report = check_conformance(lambda: BrokenStrategy("wrong-code"), effort="quick", only=["semantics-ordered"], seed=1)
    failure = report.failures[0]
    assert "(MAPERR), the running Linux: EFAULT (ACCERR)" in failure.message
    assert "(shortened)" in failure.replay
    assert failure.replay.count("\n") < 12
    assert failure.tape is not None


def test_wrong_names() -> None:
    for call in (lambda: check_conformance("nope"), lambda: check_conformance("spf", "vax"),
                 lambda: check_conformance("spf", effort="much"), lambda: check_conformance("spf", only=["luck"])):
        with pytest.raises(ValueError, match="unknown .*; known: "):
            call()


def test_json_has_everything() -> None:
    report = check_conformance("spf-rfc5[fixes=all,free=now]", effort="quick", only=["catalogue"])
    found = json.loads(json.dumps(report.to_json()))
    assert (found["kind"], found["name"], found["ok"]) == ("strategy", "spf-rfc5[fixes=all,free=now]", False)
    (check,) = found["checks"]
    assert check["failures"][0]["check"]["violations"][0]["kind"] == "use-after-free"
    assert shlex.split(check["failures"][0]["replay"])[4].startswith("pykmm1:")


def test_command(tmp_path: pathlib.Path) -> None:
    run = CliRunner()
    done = run.invoke(app, ["conformance", "mmap_sem", "--quick", "--only", "basics,counters", "--arch",
                            "x86,x86-paravirt", "--json", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    assert "conformance of strategy mmap_sem on x86-paravirt (quick, seed 0)" in done.output
    assert [one["ok"] for one in json.loads((tmp_path / "report.json").read_text())] == [True, True]
    bad = run.invoke(app, ["conformance", "spf-rfc5[recheck=off]", "--quick", "--only", "catalogue", "--save",
                           str(tmp_path / "tapes")])
    assert bad.exit_code == 1, bad.output
    saved = sorted((tmp_path / "tapes").glob("spf-rfc5-x86-catalogue-*.npz"))
    assert saved
    assert len(pykmm.Tape.load(saved[0]))
    for arguments in (["nope"], ["spf", "--arch", "vax"], ["spf", "--only", "luck"], ["spf", "--quick", "--full"],
                      ["spf", "-m", "alpha"]):
        wrong = run.invoke(app, ["conformance", *arguments])
        assert wrong.exit_code == 2, wrong.output
        assert "pykmm: " in wrong.output


SUITE = """
import pykmm.testing
from pykmm_ext.conformance_test import BrokenStrategy


class TestGood(pykmm.testing.StrategyConformance):
    strategy = "mmap_sem"
    arches = ("x86", "x86-paravirt")
    effort = "quick"


class TestBad(pykmm.testing.StrategyConformance):
    strategy = BrokenStrategy("wrong-code")
    arches = ("x86",)
    effort = "quick"


class TestMadeByAFunction(pykmm.testing.StrategyConformance):
    strategy = lambda: BrokenStrategy("no-handler")
    arches = ("x86",)
    effort = "quick"
"""


def test_in_a_suite_of_ones_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-rfs",
                           str(tmp_path / "test_mine.py")], cwd=tmp_path, capture_output=True, text=True, check=False)
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    checks = len(STRATEGY_CHECKS)
    good = [line for line in out.splitlines() if line.startswith("FAILED") and "TestGood" in line]
    assert not good, out
    assert "FAILED test_mine.py::TestBad::test_basics[x86]" in out
    assert "expected SIGSEGV ACCERR" in out
    assert "FAILED test_mine.py::TestMadeByAFunction::test_interface[x86]" in out
    assert f"{checks - 1} skipped" in out
    assert "def _test" not in out, "a traceback of the kit's own code"


def test_without_pytest() -> None:
    program = ("import sys; sys.modules['pytest'] = None\n"
               "import pykmm.testing\n"
               "print(pykmm.testing.check_conformance('mmap_sem', effort='quick', only=['basics']).ok)\n"
               "try:\n    from pykmm.testing import machine\n"
               "except ImportError as error:\n    print(error)\n")
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "True"
    assert "pytest is not installed" in done.stdout


# ---- arches --------------------------------------------------------------------------------------

@pytest.mark.parametrize("arch", MANAGER.arches.names())
def test_every_arch(arch: str) -> None:
    # What runs strategies on it is part of the tests above.
    names = [name for name in ARCH_CHECKS if name not in STRATEGY_CHECKS or name == "interface"]
    report = check_arch_conformance(arch, effort="quick", only=names)
    assert report.ok, str(report)
    assert {result.status for result in report.results} == {"pass"}
    assert len(report.results) == 9


#: Fault -> the check that has to find it, and words of its report.
EXPECTED_OF_ARCHES = {
    "loses-frame": ("entries", ["pte_pfn is"]),
    "modify-forgets": ("changes", ["pte_modify(", "changes pte_"]),
    "never-cow": ("entries", ["write is permitted", "private writable mappings begin read-only"]),
    "no-page-flush": ("flush", ["flush_tlb_page by CPU 0 of 1 pages: CPU 0 still translates page 0"]),
    "no-range-flush": ("flush", ["flush_tlb_range"]),
    "keeps-tables": ("table-freeing", ["10 page tables made, 0 freed", "nr_ptes is wrong"]),
    "any-walk": ("walk", ["a walk for write over", "succeeds, access_permitted is False"]),
    "descends": ("tables", ["not what table_none, table_bad, table_leaf and table_paddr say"]),
    "no-mkold": ("interface", ["no pte_mkold: every member of arch_ops is required"]),
    "wrong-shift": ("geometry", ["level_shift[1] is 22: a table of level 0 maps 2**21 bytes"]),
    "wrong-order": ("byte-order", ["read as big-endian"]),
}


@pytest.mark.parametrize("fault", EXPECTED_OF_ARCHES)
def test_a_broken_arch_fails_and_the_report_says_why(fault: str) -> None:
    check, words = EXPECTED_OF_ARCHES[fault]
    right = MANAGER.arches.make("x86")
    report = check_arch_conformance(lambda: BrokenArch(right, fault), effort="quick", only=[check])
    assert report[check].status == "fail", str(report)
    text = str(report)
    for word in words:
        assert word in text, text
    assert f"conformance of arch broken-{fault} " in text
    assert f"replay: check_arch_conformance(..., only=('{check}',)" in text


def test_the_arch_that_the_broken_ones_are_made_from_passes() -> None:
    assert set(EXPECTED_OF_ARCHES) | {"none"} == set(ARCH_FAULTS)
    right = MANAGER.arches.make("x86")
    report = check_arch_conformance(lambda: BrokenArch(right), effort="quick")
    assert report.ok, str(report)


def test_command_with_an_arch(tmp_path: pathlib.Path) -> None:
    run = CliRunner()
    done = run.invoke(app, ["conformance", "x86-paravirt", "--quick", "--only", "entries,flush"])
    assert done.exit_code == 0, done.output
    assert "conformance of arch x86-paravirt (quick, seed 0)" in done.output
    for arguments, words in ((["x86", "--arch", "x86"], "is an arch"), (["nope"], "unknown strategy or arch 'nope'"),
                             (["x86", "--only", "counters"], "unknown check 'counters'")):
        wrong = run.invoke(app, ["conformance", *arguments])
        assert wrong.exit_code == 2, wrong.output
        assert words in wrong.output


def test_class_of_an_arch(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_arch.py").write_text(
        "import pykmm.testing\n\n\nclass TestArch(pykmm.testing.ArchConformance):\n    arch = 'x86-5level'\n"
        "    effort = 'quick'\n\n\nclass TestNone(pykmm.testing.ArchConformance):\n    pass\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error",
                           str(tmp_path / "test_arch.py")], cwd=tmp_path, capture_output=True, text=True, check=False)
    checks = len(ARCH_CHECKS)
    assert f"{checks} failed, {checks} passed" in done.stdout, done.stdout
    assert "TestNone does not say which arch" in done.stdout
