# SPDX-License-Identifier: GPL-2.0-only
"""The documentation says what is so: C API, locking tables, public names, fidelity, commands and their output."""
from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import pykmm

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
INCLUDE = ROOT / "pykmm_ext" / "include" / "kmm"


def text(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text("utf-8")


# -- C ----------------------------------------------------------------------------------------------

def struct_body(header: str, name: str) -> str:
    """Return what stands between the braces of a struct, without comments."""
    source = re.sub(r"/\*.*?\*/", "", (INCLUDE / header).read_text("utf-8"), flags=re.DOTALL)
    match = re.search(r"\bstruct " + name + r"\s*\{(.*?)\n\}", source, flags=re.DOTALL)
    assert match, f"no struct {name} in {header}"
    return match[1]


def members(header: str, name: str) -> list[str]:
    """Return the names of a struct's members, in order."""
    found = []
    for statement in struct_body(header, name).split(";"):
        statement = statement.replace("____cacheline_aligned", "").strip()
        pointer = re.search(r"\(\*(\w+)\)", statement)
        if pointer:
            found.append(pointer[1])
        elif statement:
            found += [re.search(r"(\w+)(?:\[[^]]*\])*\s*$", part)[1] for part in statement.split(",")]  # type: ignore[index]
    return found


@pytest.mark.parametrize(("header", "name"), [("strategy.h", "strategy_ops"), ("arch.h", "arch_ops")])
def test_c_tables_are_documented(header: str, name: str) -> None:
    """docs/reference/c-api.rst, the C header and the .pxd have the same members in the same order."""
    page = text("docs", "reference", "c-api.rst")
    part = page.partition(f".. c:struct:: {name}\n")[2].partition(".. c:struct::")[0]
    documented = [re.search(r"\(\*(\w+)\)|\b(\w+)(?:\[\d+\])?$", line.strip()) for line in part.splitlines()
                  if line.strip().startswith(".. c:member::")]
    names = [match[1] or match[2] for match in documented if match]
    assert names == members(header, name)

    pxd = text("pykmm_ext", "mm", "mm_types.pxd").partition(f"cdef struct {name}:\n")[2]
    declared = []
    for line in re.sub(r",\n +", ", ", pxd).splitlines():
        if not line.startswith("        "):
            break
        match = re.search(r"\(\*(\w+)\)|\b(\w+)(?:\[\w+\])?$", line.strip())
        assert match
        declared.append(match[1] or match[2])
    assert declared == names


def test_c_functions_are_documented() -> None:
    page = text("docs", "reference", "c-api.rst")
    for name in ("strategy", "arch"):
        declared = re.findall(r"^cdef [^(]*?\**(\w+)\(", text("pykmm_ext", f"{name}.pxd"), flags=re.MULTILINE)
        missing = [function for function in declared
                   if not re.search(rf"^\.\. c:function:: .*\b{function}\(", page, re.MULTILINE)]
        assert declared
        assert not missing


@pytest.mark.parametrize(("header", "name"), [
    ("mm_types.h", "mm_struct"), ("mm_types.h", "vm_area_struct"), ("mm_types.h", "address_space"),
    ("mm_types.h", "anon_vma"), ("mm_types.h", "rcu_state"), ("srcu_types.h", "srcu_struct"),
    ("rwsem_types.h", "rw_semaphore"),
])
def test_every_shared_field_is_in_the_locking_tables(header: str, name: str) -> None:
    rows = [row.partition("|")[0] for row in text("docs", "reference", "locking.rst").splitlines() if "|" in row]
    words = set(re.findall(r"\w+", " ".join(rows)))
    constant = {match[1] for match in re.finditer(r"(\w+);\s*/\* const\b", (INCLUDE / header).read_text("utf-8"))}
    missing = [field for field in members(header, name)
               if field not in words and field not in constant and not field.startswith("__pad")]
    assert not missing


@pytest.mark.parametrize(("header", "name"), [("mm_types.h", "mm_struct"), ("mm_types.h", "vm_area_struct")])
def test_locking_tables_name_no_field_that_is_gone(header: str, name: str) -> None:
    part = text("docs", "reference", "locking.rst").partition(f".. _locking-{name}:")[2].partition("\n.. _")[0]
    table = part.partition("field |")[2].partition("\n\n")[0]
    rows = [row.partition("|")[0] for row in table.splitlines()[1:] if "|" in row]
    named = [field.strip() for row in rows for field in row.split(",")]
    assert named
    assert set(named) <= set(members(header, name))


# -- Python -----------------------------------------------------------------------------------------

def test_public_names_are_documented() -> None:
    page = text("docs", "reference", "python.rst")
    documented = re.findall(r"^\.\. (?:auto|py:)\w+:: (?:pykmm\.)?([\w.]+)", page, flags=re.MULTILINE)
    last = {name.rpartition(".")[2] for name in documented}
    assert set(pykmm.__all__) <= last, sorted(set(pykmm.__all__) - last)


@pytest.mark.parametrize("name", sorted(pykmm.__all__))
def test_public_names_have_docstrings(name: str) -> None:
    thing = getattr(pykmm, name)
    if callable(thing) and type(thing).__module__ != "pluggy._hooks":
        assert thing.__doc__
        assert len(thing.__doc__.split()) >= 3


# -- fidelity -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def fidelity() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("fidelity", DOCS / "_ext" / "fidelity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fidelity_lists_every_module_that_makes_a_statement(fidelity: types.ModuleType) -> None:
    sources = fidelity.sources()
    assert len(sources) > 40
    silent = [str(path.relative_to(ROOT)) for path in sources
              if re.search(r"(?m)^\s*(?:#|\*|/\*|\"\"\").*simplified:", path.read_text("utf-8"))
              and not fidelity.statements(path)]
    assert not silent


def test_fidelity_reads_comments_and_docstrings(fidelity: types.ModuleType, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "x.pyx"
    source.write_text('"""mm/x.c: a thing.\n\nsimplified: no foo, and\nno bar. Otherwise plain.\n"""\n'
                      "x = 1  # stands in for y\n\n# Plain. As Linux 4.12 does it.\ndef simplified():\n    pass\n")
    assert fidelity.statements(source) == [
        "simplified: no foo, and no bar.", "x: stands in for y", "As Linux 4.12 does it."]
    header = tmp_path / "x.h"
    header.write_text("/*\n * One. simplified: a list,\n * not a tree.\n */\nint a; /* stands in for b */\n")
    assert fidelity.statements(header) == ["simplified: a list, not a tree.", "a: stands in for b"]


# -- commands -------------------------------------------------------------------------------------------

def console_blocks(path: pathlib.Path) -> list[tuple[str, str]]:
    """Return (command, output) of each ``$ pykmm …`` in the page's console blocks."""
    found = []
    for block in re.findall(r"\.\. code-block:: console\n\n((?:   .*\n|\n)+)", path.read_text("utf-8")):
        lines = [line[3:].rstrip() for line in block.splitlines()]
        command: str | None = None
        output: list[str] = []
        for line in [*lines, "$ "]:
            if line.startswith("$ "):
                if command and command.startswith("pykmm "):
                    found.append((command, "\n".join(output).strip()))
                command, output = line[2:], []
            else:
                output.append(line)
    return found


def mask(output: str) -> list[str]:
    """What has to agree: every word, no figure, no spacing, no rule of a table.

    Of a table's rows it is the first two cells: which aborts happen is another matter in every run.
    """
    lines = []
    for line in output.splitlines():
        if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}"):
            line = " ".join(line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[1:3])
        line = re.sub(r"[^\w\s()\[\]:;,.%/$=+-]|-{3,}", " ", line)
        line = re.sub(r"[+-]?\b\d[\d.,]*(?:e[+-]?\d+)?(?: ?(?:ns|us|ms|s|M|k|%))?(?!\w)", "N", line)
        if line.strip():
            lines.append(" ".join(line.split()))
    return lines


def run(command: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb", "PYKMM_DISABLE_PLUGINS": "all"}
    script = "pykmm() { " + f'"{sys.executable}" -m pykmm.cli "$@"; }}; ' + command
    return subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True, check=False,
                          timeout=300, env=environment)


COMMANDS = [(page, command, output) for page in sorted(DOCS.rglob("*.rst"))
            for command, output in console_blocks(page)]


@pytest.mark.parametrize(("page", "command", "output"), COMMANDS,
                         ids=[f"{page.stem}-{number}" for number, (page, _, _) in enumerate(COMMANDS)])
def test_documented_command(page: pathlib.Path, command: str, output: str, tmp_path: pathlib.Path) -> None:
    """Each command of the documentation works; where the page shows its output, the words are the same."""
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    if output:
        assert mask(done.stdout) == mask(output), f"{page}: {command}\n{done.stdout}"


def test_the_tutorial_has_commands() -> None:
    assert [command for page, command, _ in COMMANDS if page.parent.name == "tutorial"]


def readme_commands() -> list[str]:
    return re.findall(r"^    \$ (python3 -m venv .*)$", text("README.md"), flags=re.MULTILINE)


def test_readme_has_exactly_two_set_up_commands() -> None:
    first, second = readme_commands()
    assert "pip install ." in first
    assert ".venv/bin/pykmm replay --example" in first
    assert "pip install '.[test]'" in second
    assert second.endswith(".venv/bin/pytest")


def test_ci_runs_the_readmes_second_command() -> None:
    """The extraction in .ci/run finds what the README says."""
    (line,) = [line for line in text(".ci", "run").splitlines() if line.startswith("command=$(")]
    done = subprocess.run(["bash", "-c", line + '; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout == readme_commands()[1]


def test_readme_shows_a_real_output(tmp_path: pathlib.Path) -> None:
    """The table in the README has the rows and columns that its first command prints."""
    shown = text("README.md").partition("which prints")[2].partition("```text\n")[2].partition("```")[0]
    assert shown
    done = run("pykmm " + readme_commands()[0].partition("bin/pykmm ")[2], tmp_path)
    assert done.returncode == 0, done.stderr
    assert mask(done.stdout) == mask(shown), done.stdout


def test_readme_shows_a_real_report(tmp_path: pathlib.Path) -> None:
    """What `pykmm check` finds is what the README says; how the search got there may change."""
    command = re.search(r"^    \$ (pykmm check .*--variant buggy)$", text("README.md"), flags=re.MULTILINE)
    assert command
    shown = text("README.md").partition(command[1])[2].partition("```text\n")[2].partition("```")[0]
    done = run(command[1], tmp_path)
    assert done.returncode == 1, done.stderr
    said = [[line for line in mask(output) if line.startswith(("R", "violation", "schedule", "replay"))]
            for output in (done.stdout, shown)]
    assert len(said[0]) >= 4
    assert said[0][:2] == said[1][:2]
    assert mask(done.stdout)[2] == mask(shown)[2]       # the head of the table


def test_readme_python_example(tmp_path: pathlib.Path) -> None:
    code = text("README.md").partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert "rw-p" in done.stdout


def test_command_line_page_names_every_option(tmp_path: pathlib.Path) -> None:
    page = text("docs", "reference", "cli.rst")
    top = run("pykmm -h", tmp_path).stdout
    commands = re.findall(r"^\W*(\w+)  ", top.partition("Commands")[2], flags=re.MULTILINE)
    assert "replay" in commands
    for command in commands:
        assert f"pykmm {command}" in page
        shown = run(f"pykmm {command} -h", tmp_path).stdout
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown))
        missing = [option for option in sorted(options - {"--help"}) if option not in page]
        assert not missing, f"pykmm {command}: {missing}"


def test_benchmarks_collect() -> None:
    """``pytest benchmarks/`` finds them, though they are no part of a test run."""
    done = subprocess.run([sys.executable, "-m", "pytest", "benchmarks/", "--collect-only", "-q",
                           "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench_" in done.stdout


@pytest.mark.parametrize("page", ["howto/check.rst", "howto/compare.rst", "howto/explore.rst", "howto/plugins.rst",
                                  "howto/tape.rst",
                                  "tutorial/race.rst", "tutorial/replay.rst"])
def test_python_examples_run(page: str, tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", (DOCS / page).read_text("utf-8"))
    assert blocks
    code = "\n".join(line[3:] for block in blocks for line in block.splitlines())
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


def test_measurements_name_benchmarks_that_exist() -> None:
    named = set(re.findall(r"``(bench_\w+\.py)::(\w+)``", text("docs", "explanation", "measurements.rst")))
    assert named
    for file, function in named:
        assert f"def {function}(" in text("benchmarks", file)
