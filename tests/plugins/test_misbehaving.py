# SPDX-License-Identifier: GPL-2.0-only
"""Plugins of other packages that do something wrong: the command line names them, and the way out."""
from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

STRATEGIES = '''
    import pykmm
    from pykmm import kernel

    class Base(pykmm.PythonStrategy):
        name = "base"
        def handle_fault(self, cpu, mm, address, flags):
            return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    class Init(Base):
        name = "init"
        def __init__(self):
            raise ValueError("no luck")

    class Raises(Base):
        name = "raises"
        def handle_fault(self, cpu, mm, address, flags):
            raise KeyError("boom")

    class Writer(Base):
        name = "writer"
        def mmap_write_lock(self, cpu, mm, start, end):
            raise OSError(2, "boom")
        def mmap_write_unlock(self, cpu, mm):
            pass

    class Exits(Base):
        name = "exits"
        def handle_fault(self, cpu, mm, address, flags):
            raise SystemExit(5)

    class Endless(Base):
        name = "endless"
        def handle_fault(self, cpu, mm, address, flags):
            while True:
                pass

    class Waits(Base):          # in a kernel function, for what nobody does
        name = "waits"
        def vma_start_write(self, cpu, vma):
            kernel.await_equal(cpu, vma.at("vm_refcnt"), 0xffff, 12345)

    class Later(Base):          # in the searched part of a tape
        name = "later"
        faults = 0
        def handle_fault(self, cpu, mm, address, flags):
            self.faults += 1
            while self.faults > 2:
                pass
            return super().handle_fault(cpu, mm, address, flags)

    class NoMm(Base):
        name = "no-mm"
        def mm_init(self, cpu, mm):
            raise KeyError("boom")

    @pykmm.hookimpl
    def pykmm_register_strategies(registry):
        for made in Init, Raises, Writer, Exits, Endless, Waits, Later, NoMm:
            registry.add(made.name, made)
        registry.add("nothing", lambda: None)
        registry.add("option", Base, options={"x": ("1", "2")})
'''
OTHERS = '''
    import pykmm
    from pykmm.checking.scenario import Config, Scenario, register

    class Reader:
        name = description = "reader"
        def sniff(self, first_lines, path):
            return path.endswith(".reader")
        def load(self, path, lines):
            return {}[path]

    @pykmm.hookimpl
    def pykmm_register_importers(registry):
        registry.add("reader", Reader)

    @pykmm.hookimpl
    def pykmm_register_workloads(registry):
        registry.add("work", lambda: 1 / 0)
        registry.add("dict", lambda: {})

    @pykmm.hookimpl
    def pykmm_register_arch(registry):
        registry.add("vax", dict)

    def build():
        raise RuntimeError("no tape")

    @pykmm.hookimpl
    def pykmm_register_scenarios(registry):
        register(registry, Scenario("race", "a race", build, fixed=Config()))

    @pykmm.hookimpl
    def pykmm_report(result):
        raise ArithmeticError("no report")
'''


@pytest.fixture
def fails(tmp_path: pathlib.Path) -> Callable[..., str]:
    """Installs a package with one module and an entry point; runs pykmm, which has to end with 2 and no traceback."""

    def install(code: str, *command: str, target: str = "bad_plugin", **environment: str) -> str:
        (tmp_path / "bad_plugin.py").write_text(textwrap.dedent(code), "utf-8")
        info = tmp_path / "bad_package-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-package\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[pykmm]\nbad = {target}\n", "utf-8")
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run([sys.executable, "-m", "pykmm.cli", *command], cwd=tmp_path, capture_output=True,
                              text=True, check=False, timeout=120,
                              env={**os.environ, "PYTHONPATH": path, **environment})
        assert done.returncode == 2, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert "site-packages" not in done.stderr       # lines of the plugin alone
        return done.stderr

    return install


@pytest.mark.parametrize(("code", "message"), [
    ("import no_such_module", r"ModuleNotFoundError: No module named 'no_such_module' \(bad_plugin\.py:1\)"),
    ("def f(:", r"SyntaxError: invalid syntax \(bad_plugin\.py, line 1\)"),
    ("import sys\nsys.exit(3)", r"SystemExit: 3 \(bad_plugin\.py:2\)"),
    ("import pykmm", "has no pykmm hook: its hook functions need @pykmm.hookimpl"),
    ("import pykmm\ndef pykmm_register_strategies(registry): pass", "has no pykmm hook"),
    ("import pykmm\n@pykmm.hookimpl\ndef pykmm_register_strategy(registry): pass",
     r"unknown hook 'pykmm_register_strategy'; did you mean pykmm_register_strategies\?"),
    ("import pykmm\n@pykmm.hookimpl\ndef pykmm_register_strategies(reg): pass",
     r"Argument\(s\) \{'reg'\} are declared in the hookimpl but can not be found in the hookspec"),
    ("import pykmm\n@pykmm.hookimpl\ndef pykmm_register_strategies(registry):\n    1 / 0",
     r"ZeroDivisionError: division by zero \(bad_plugin\.py:4\)"),
    ("import pykmm\n@pykmm.hookimpl\ndef pykmm_register_strategies(registry): registry.add('spf', dict)",
     r"strategy 'spf' is registered twice: by strategies\.spf \(built in\) and by bad \(bad-package 1\.0\)"),
    ("import pykmm\n@pykmm.hookimpl\ndef pykmm_register_strategies(registry): registry.add('s', 'spf')",
     "strategy 's': the factory must be callable, not str"),
])
def test_a_plugin_that_cannot_be_loaded(fails: Callable[..., str], code: str, message: str) -> None:
    said = fails(code, "list")
    assert re.search(r"plugin 'bad' \(bad_plugin of bad-package 1\.0\) cannot be loaded: .*" + message, said), said
    assert said.rstrip().endswith("PYKMM_DISABLE_PLUGINS=bad leaves it out")
    assert len(said.splitlines()) == 1


def test_a_wrong_entry_point(fails: Callable[..., str]) -> None:
    assert "ModuleNotFoundError: No module named 'nowhere'" in fails("", "list", target="nowhere")
    assert "AttributeError: module 'bad_plugin' has no attribute 'Plugin'" in \
        fails("", "list", target="bad_plugin:Plugin")


@pytest.mark.parametrize(("command", "message"), [
    (("replay", "--example", "-s", "init"),
     r"strategy 'init' \(bad-package 1\.0\) cannot be made: ValueError: no luck \(bad_plugin\.py:\d+\)"),
    (("replay", "--example", "-s", "option[x=1]"),
     r"strategy 'option' \(bad-package 1\.0\) cannot be made: TypeError: Base\(\) takes no arguments"),
    (("replay", "--example", "-s", "nothing"),
     r"strategy 'nothing' \(bad-package 1\.0\): its factory made a NoneType, and no pykmm_ext\.strategy\.Strategy"),
    (("replay", "--example", "-s", "raises"),
     r"a plugin failed: KeyError: 'boom'\nin handle_fault\(\) of strategy 'raises' on CPU 0\n"
     r"  File \".*bad_plugin\.py\", line \d+, in handle_fault\n    raise KeyError\(\"boom\"\)\n$"),
    (("check", "spf-munmap-fault", "-s", "raises"),
     r"a plugin failed: KeyError: 'boom'\n.*\n.* line \d+, in handle_fault"),
    (("replay", "--example", "-s", "writer"), r"\[Errno 2\] boom\nin mmap_write_lock\(\) of strategy 'writer'"),
    (("replay", "--example", "-s", "exits"), "a plugin failed: SystemExit: 5\n"),
    (("replay", "--example", "-s", "endless"),
     r"strategy 'endless': nothing has happened for 1 s; CPU 0 .*\n.*line \d+"),
    (("check", "spf-munmap-fault", "-s", "endless"),
     r"strategy 'endless': nothing has happened for 1 s, in the setup of the tape\n.*line \d+"),
    (("check", "spf-2021-merge-fault", "-s", "waits"),
     r"strategy 'waits': nothing has happened for 1 s, in the setup of the tape\n"
     r".*line \d+, in vma_start_write\n.*await"),
    (("check", "spf-fault-fault", "-s", "later"),
     r"strategy 'later': Python code of Cpu \d has not come to a primitive for 1 s: it loops, (.|\n)* in handle_fault"),
    (("check", "spf-fault-fault", "-s", "no-mm"),
     r"a plugin failed: KeyError: 'boom'\nin mm_init\(\) of strategy 'no-mm'"),
])
def test_a_strategy_that_fails(fails: Callable[..., str], command: tuple[str, ...], message: str) -> None:
    said = fails(STRATEGIES, *command, PYKMM_WATCHDOG="1")
    assert re.match("pykmm: .*" + message, said), said


@pytest.mark.parametrize(("command", "message"), [
    (("replay", "x.reader"),
     r"importer 'reader' \(bad-package 1\.0\): load\(\): KeyError: 'x\.reader' \(bad_plugin\.py:\d+\)"),
    (("compare", "work"),
     r"workload 'work' \(bad-package 1\.0\) cannot be made: ZeroDivisionError: .* \(bad_plugin\.py:\d+\)"),
    (("compare", "dict"), r"workload 'dict' \(bad-package 1\.0\): its factory made a dict, and no pykmm\.tape\.Tape"),
    (("replay", "--example", "--arch", "vax"),
     r"arch 'vax' \(bad-package 1\.0\): its factory made a dict, and no pykmm_ext\.arch\.Arch"),
    (("check", "race"), r"a plugin failed: RuntimeError: no tape\n.* line \d+, in build"),
    (("replay", "--example"), r"a plugin failed: ArithmeticError: no report\n.* line \d+, in pykmm_report"),
])
def test_other_plugins_that_fail(fails: Callable[..., str], tmp_path: pathlib.Path, command: tuple[str, ...],
                                 message: str) -> None:
    (tmp_path / "x.reader").write_text("something\n", "utf-8")
    said = fails(OTHERS, *command)
    assert re.match("pykmm: " + message, said), said
