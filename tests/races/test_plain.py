# SPDX-License-Identifier: GPL-2.0-only
"""Data races of plain accesses: the detector on litmus programs, and the mm in a build that sees its plain accesses."""
from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

import pykmm
from pykmm.checking.scenario import get
from pykmm.checking.symbols import with_names
from pykmm.testing import assert_checked
from pykmm_ext.engine.check import PLAIN_ACCESSES, Exploration
from pykmm_ext.engine.litmus import Litmus

ROOT = pathlib.Path(__file__).parents[2]
LIB = ROOT / "tests" / "lib"
Code = list[dict[str, Any]]

READ: Code = [{"op": "plain_load", "addr": 8, "reg": 0}]
WRITE: Code = [{"op": "plain_store", "addr": 8, "a": 1}]
MARKED: Code = [{"op": "load", "addr": 8, "reg": 0}]


def locked(kind: str, body: Code) -> Code:
    """`body` with rwsem 0 held."""
    return [{"op": f"down_{kind}", "addr": 0}, *body, {"op": f"up_{kind}", "addr": 0}]


def kinds(*threads: Code) -> set[str]:
    """What an exhaustive search finds."""
    exploration = Exploration(Litmus(threads, plain=True), memory_model="tso")
    exploration.run(stop_at_violation=False)
    assert exploration.complete
    return {kind for kind, *_ in exploration.violations}


def publish(order: str) -> tuple[Code, Code]:
    """Message passing: a plain store, a flag that is stored with `order`, and who has seen the flag."""
    return ([*WRITE, {"op": "store", "addr": 1, "a": 1, "order": order}, {"op": "store", "addr": 1, "a": 2}],
            [{"op": "await_eq", "addr": 1, "a": 2}, *READ])


@pytest.mark.parametrize(("threads", "found"), [
    pytest.param((READ, READ), False, id="two loads"),
    pytest.param((READ, WRITE), True, id="load and store"),
    pytest.param((WRITE, WRITE), True, id="two stores"),
    pytest.param((WRITE, MARKED), True, id="a plain store and a marked load"),
    pytest.param((READ, [{"op": "store", "addr": 8, "a": 1}]), True, id="a plain load and a marked store"),
    pytest.param((MARKED, [{"op": "store", "addr": 8, "a": 1}]), False, id="marked ones"),
    pytest.param((locked("write", WRITE), locked("read", READ)), False, id="writer and reader"),
    # Whoever reads second takes the lock after the first has given it back, and is not ordered by that.
    pytest.param((locked("read", WRITE), locked("read", READ)), True, id="two readers"),
    pytest.param((locked("read", READ), locked("read", READ), locked("write", WRITE)), False, id="readers and writer"),
    pytest.param(publish("release"), False, id="a later store of the same CPU goes on with the release"),
    pytest.param(publish("relaxed"), True, id="no release"),
])
def test_what_is_a_race(threads: tuple[Code, ...], found: bool) -> None:
    assert kinds(*threads) == ({"data-race"} if found else set())


def test_places_become_names() -> None:
    assert with_names("a plain load at pc 0x10 of x") == "a plain load in an unknown function of x"
    assert with_names("no place here") == "no place here"


@pytest.mark.skipif(PLAIN_ACCESSES, reason="this build sees them")
def test_what_this_build_does_not_see() -> None:
    with pytest.raises(ValueError, match="PYKMM_PLAIN=1"):
        pykmm.check("plain-mprotect-flags", variant="buggy")
    assert not get("plain-mprotect-flags").shown
    assert get("R5-vma-freed-at-once").shown
    assert_checked(pykmm.check("plain-mprotect-flags"))


# -- the mm ---------------------------------------------------------------------------------------


def package(name: str) -> pathlib.Path:
    """Where the package lies."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return pathlib.Path(spec.origin).parent


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The installed packages with the modules laid over them in which a build with PYKMM_PLAIN differs."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("no source tree here")
    place = tmp_path_factory.mktemp("plain")
    for name in ("pykmm_ext", "pykmm_plugins"):
        shutil.copytree(package(name), place / name, ignore=shutil.ignore_patterns("*.c", "*.html", "__pycache__"))
    shutil.copytree(package("pykmm"), place / "pykmm", ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYKMM_PLAIN": "part", "PYKMM_CFLAGS": "-O1 -w"}
    env.pop("PYKMM_ONLY", None)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", str(place), "--build-temp",
         str(place / "build")], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def run(variant: pathlib.Path, *arguments: str) -> Any:
    """What tests/lib/plain_variant.py found."""
    done = subprocess.run([sys.executable, "-W", "error", str(LIB / "plain_variant.py"), *arguments], cwd=variant,
                          env={**os.environ, "PYTHONPATH": str(variant)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_scenarios(variant: pathlib.Path) -> None:
    """Nothing in what is shipped; bugs are found as what they are, or by the race that goes before them."""
    found = run(variant, "scenarios", "250")
    assert {name: row["fixed"] for name, row in found.items() if row["fixed"]} == {}
    for name, row in found.items():
        assert row["executions"], name
        if row.get("buggy"):
            assert row["buggy"][0][0] in [*row["expected"], "data-race"], (name, row["buggy"])
    kind, message = found["plain-mprotect-flags"]["buggy"][0]
    assert kind == "data-race"
    assert "a plain store in mprotect." in message
    assert "vm_flags" in message
    assert "a marked load in _spf." in message
    kind, message = found["plain-mremap-count"]["buggy"][0]
    assert kind == "data-race"
    assert "map_count" in message
    assert "a plain load in mremap." in message


@pytest.mark.slow
def test_pairs_of_operations(variant: pathlib.Path) -> None:
    assert run(variant, "pairs", "60") == []


@pytest.mark.slow
def test_without_locks_and_barriers_there_are_races(variant: pathlib.Path) -> None:
    found = run(variant, "weakened")
    assert all(found.values()), found
    assert any("handle_fault_mmap_sem" in message or "vm_flags" in message for message in found["rwsem"]), found
