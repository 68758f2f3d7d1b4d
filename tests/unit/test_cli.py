# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/cli.py: commands, exit status, and what a user's mistakes look like."""
from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from pykmm_command import fails, pykmm

DATA = Path(str(files("pykmm.data")))
TRACE = DATA / "python-threads.perf-trace.txt.xz"


def test_the_example() -> None:
    done = pykmm("replay", "--example")
    assert done.returncode == 0, done.stderr
    for word in ("mmap_sem", "spf", "native", "faults/s", "recorded faults: 2,464 minor", "retried",
                 "maps: spf on native ended with the 110 recorded mappings"):
        assert word in done.stdout
    assert done.stderr == ""        # progress is for terminals


def test_json(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = pykmm("replay", TRACE, "-s", "spf", "-e", "native", "--json", out)
    assert done.returncode == 0, done.stderr
    assert "spf" in done.stdout
    [trace] = json.loads(out.read_text())
    [row] = trace["rows"]
    assert (row["strategy"], row["engine"], row["ratio"]) == ("spf", "native", 1.0)
    assert trace["recorded_faults"] == {"minor": 2464, "major": 2}
    assert row["run"]["mismatch_count"] == 0
    assert trace["maps_ok"] is True
    done = pykmm("replay", TRACE, "-s", "spf", "--json", "-")
    assert json.loads(done.stdout)[0]["rows"][0]["faults"] == row["faults"]


def test_different_maps_are_exit_status_1(tmp_path: Path) -> None:
    for path in DATA.glob("python-threads.*"):
        shutil.copy(path, tmp_path)
    end = tmp_path / "python-threads.end-maps.txt"
    lines = end.read_text().splitlines(keepends=True)
    gone = next(line for line in lines if "rw-p" in line and "[" not in line)
    end.write_text("".join(line for line in lines if line is not gone))
    done = pykmm("replay", tmp_path / TRACE.name, "-s", "spf")
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    start, stop = gone.split()[0].split("-")
    assert f"+{int(start, 16):012x}-{int(stop, 16):012x} rw-p" in done.stdout


def test_maps() -> None:
    done = pykmm("maps", TRACE, "-w", "end")
    assert done.returncode == 0
    assert done.stdout == (DATA / "python-threads.end-maps.txt").read_text()
    final = pykmm("maps", TRACE)
    assert final.returncode == 0
    assert [line.split()[0] for line in final.stdout.splitlines()] == [
        line.split()[0] for line in done.stdout.splitlines() if "vsyscall" not in line]


def test_replay_on_two_arches() -> None:
    done = pykmm("replay", TRACE, "-s", "spf", "--arch", "x86,ppc64-4k", "-e", "native")
    assert done.returncode == 0, done.stderr
    for arch in ("x86", "ppc64-4k"):
        assert f"maps: spf on native ({arch}) ended with the 110 recorded mappings" in done.stdout


def test_compare_and_list() -> None:
    done = pykmm("compare", TRACE, "-e", "native", "-r", "2")
    assert done.returncode == 0, done.stderr
    assert "median of 2 runs" in done.stdout
    assert "maps: spf on native ended with the 110 recorded mappings" in done.stdout
    done = pykmm("list")
    assert done.returncode == 0
    for name in ("mmap_sem", "spf", "x86", "perf-trace", "strace", "native", "host", "check"):
        assert name in done.stdout
    assert all(line.endswith("[built in]") for line in done.stdout.splitlines() if line.startswith("  spf"))
    found = json.loads(pykmm("list", "--json", "-").stdout)
    assert [row["name"] for row in found["strategies"]][:2] == ["mmap_sem", "spf"]
    assert found["strategies"][0]["source"] == "built in"


def test_compare_workloads(tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    done = pykmm("compare", "page_fault1[size=64K]", "mmap1[iterations=9]", "--strategies", "mmap_sem,spf", "--arches",
                 "x86", "--engines", "native,host", "--cpus", "1,2", "--repeats", "2", "--json", out, "--plot", picture)
    assert done.returncode == 0, done.stderr
    for word in ("page_fault1[size=64K]", "mmap1[iterations=9]", "faults/s", "iterations/s", "linux", "rate / mmap_sem",
                 "rate / rate of mmap_sem on 1 CPU", "median of 2 runs"):
        assert word in done.stdout
    rows = json.loads(out.read_text())["rows"]
    assert [(row["cpus"], row["strategy"]) for row in rows[:3]] == [(1, "mmap_sem"), (1, "spf"), (1, "linux")]
    assert len(rows) == 12
    assert "page_fault1" in picture.read_text()
    only = pykmm("compare", "mmap1[iterations=9]", "-s", "spf", "-e", "native", "--json", "-")
    assert json.loads(only.stdout)["rows"][0]["unit"] == "iterations"
    again = pykmm("compare", "mmap1[iterations=9]", "-s", "spf", "-s", "mmap_sem,spf-rfc5[ptl=spin,seq=plain]", "-e",
                  "native", "--cpus", "1", "--cpus", "2", "-r", "1", "--json", "-")
    assert [(row["strategy"], row["cpus"]) for row in json.loads(again.stdout)["rows"]] == [
        (name, cpus) for cpus in (1, 2) for name in ("spf", "mmap_sem", "spf-rfc5[ptl=spin,seq=plain]")]
    short = pykmm("compare", "mmap1[iterations=9]", "-s", "spf", "-e", "native", "--summary", "-r", "1")
    assert "outcome of faults" not in short.stdout
    assert "spf, rate" in short.stdout


def test_compare_on_the_check_engine() -> None:
    done = pykmm("compare", "mmap1[iterations=1]", "-e", "check", "-s", "spf", "--cpus", "2", "--max-executions", "20")
    assert done.returncode == 0, done.stderr
    assert "searched for races" in done.stdout


def test_compare_errors(tmp_path: Path) -> None:
    assert "neither a file nor a workload; known: page_fault1" in fails("compare", "page_fault9")
    assert "No such file" in fails("compare", "none.txt")
    assert "nothing to compare" in fails("compare")
    assert "unknown suite 'x'; known: faults" in fails("compare", "--suite", "x")
    assert "--cpus takes numbers like 1,2,4, not 'two'" in fails("compare", "mmap1", "--cpus", "1,two")
    assert "1 to 4096" in fails("compare", "mmap1", "--cpus", "0")
    assert "has no option 'pages'" in fails("compare", "mmap1[pages=3]")
    assert "mmap1[size=x]: size: 'x' is not a size" in fails("compare", "mmap1[size=x]")
    assert "is no name with options" in fails("compare", "mmap1[size=4K")
    assert "unknown engine 'warp'; known: native, host, check" in fails("compare", "mmap1", "-e", "warp")
    assert "'spf' is not compared" in fails("compare", "mmap1", "-s", "mmap_sem", "--baseline", "spf")
    assert ".png or .svg" in fails("compare", "mmap1", "--plot", tmp_path / "x.jpg")
    assert "needs 5 CPUs, not 2" in fails("compare", TRACE, "--cpus", "2")
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    done = pykmm("compare", "mmap1", "--plot", tmp_path / "x.png",
                 PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    assert done.returncode == 2
    assert "pip install 'pykmm[plot]'" in done.stderr


@pytest.mark.parametrize("command", [[], ["replay"], ["compare"], ["maps"], ["list"]])
def test_help(command: list[str]) -> None:
    short, long = pykmm(*command, "-h"), pykmm(*command, "--help")
    assert short.returncode == 0
    assert short.stdout == long.stdout
    assert ("Example" in short.stdout) == bool(command)


def test_help_is_cheap() -> None:
    """`pykmm -h` imports neither numpy nor the compiled core nor rich."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pykmm.cli", "-h"], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"numpy", "pykmm_ext.binding", "rich", "pluggy", "pykmm.tape"}


def test_unknown_names() -> None:
    assert "unknown strategy 'nope'; known: mmap_sem, spf" in fails("replay", TRACE, "-s", "mmap_sem,nope")
    assert "unknown engine 'warp'; known: native, host" in fails("replay", TRACE, "-e", "warp")
    assert "unknown arch 'vax'; known: x86" in fails("replay", TRACE, "--arch", "vax")
    assert "no strategy given" in fails("replay", TRACE, "-s", ",")
    assert "is not a size" in fails("replay", TRACE, "--memory", "much")
    assert "unknown maps 'middle'" in fails("maps", TRACE, "-w", "middle")
    assert "No such option" in fails("replay", "--wrong")
    assert "No such command" in fails("dance")


def test_too_little_memory_is_an_error() -> None:
    assert "memory must be at least" in fails("replay", TRACE, "--memory", "4K")
    assert "touch at 0x7fd3bc9180d8 failed: out of simulated memory" in fails("replay", TRACE, "--memory", "2M")
    said = fails("compare", "faults[size=4M]", "-s", "spf", "-e", "native", "--memory", "1M", "--summary")
    assert "faults[size=4M] under spf on native: no figure" in said
    said = fails("compare", "page_fault1[size=2M]", "-s", "spf", "-e", "check", "--memory", "1M")
    assert "out of memory: " in said
    assert said.count("--memory") == 1


def test_a_plot_of_nothing_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykmm.comparison.compare", None)
    assert "nothing to draw" in fails("compare", "mmap1", "-e", "check", "--plot", tmp_path / "e.png")


def test_bad_files(tmp_path: Path) -> None:
    assert "No such file" in fails("replay", tmp_path / "none.txt")
    assert "directory" in fails("replay", tmp_path)
    whole = TRACE.read_bytes()
    cut = tmp_path / "cut.perf-trace.txt.xz"
    cut.write_bytes(whole[:len(whole) // 2])
    assert "cut.perf-trace.txt.xz" in fails("replay", cut)
    text = tmp_path / "prose.txt"
    text.write_text("It was a dark and stormy night.\n" * 40)
    assert "prose.txt" in fails("replay", text)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "empty.txt" in fails("replay", empty)
    binary = tmp_path / "noise.txt"
    binary.write_bytes(bytes(range(256)) * 100)
    assert "noise.txt" in fails("replay", binary)
    zip_file = tmp_path / "fake.npz"
    zip_file.write_bytes(b"PK\x03\x04 nothing of the kind")
    assert "fake.npz" in fails("replay", zip_file)


def test_an_impossible_munmap(tmp_path: Path) -> None:
    """An address that munmap(2) refuses, recorded as a success: file and line, or a reported result."""
    lines = lzma.decompress(TRACE.read_bytes()).decode().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if "munmap(" in line)
    before, after = lines[place].split("addr: 0x", 1)
    lines[place] = f"{before}addr: 0x123{after[after.index(','):]}"
    path = tmp_path / "python-threads.perf-trace.txt"
    path.write_text("".join(lines))
    done = pykmm("replay", path, "-s", "spf")
    assert "Traceback" not in done.stderr
    assert f"line {place + 1}" in done.stdout or f":{place + 1}:" in done.stderr
    assert done.returncode in (0, 1, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(0)
    assert "Permission denied" in fails("replay", path)


def test_python_m_pykmm_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pykmm", "list"], capture_output=True, text=True, check=True)
    assert "strategies:" in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "pykmm", "no-such-command"], capture_output=True, text=True,
                           check=False)
    assert (wrong.returncode, "No such command" in wrong.stderr) == (2, True)


def test_version() -> None:
    import pykmm as library

    assert pykmm("--version").stdout == f"pykmm {library.__version__}\n"


def test_list_of_some_kinds() -> None:
    done = pykmm("list", "arches", "engines")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == ["arch backends:", "engines:"]
    assert list(json.loads(pykmm("list", "importers", "--json", "-").stdout)) == ["importers"]
    assert "nothing is called 'strategie'; known: strategies, arches, importers, " in fails("list", "strategie")


@pytest.mark.parametrize("arguments", [
    ("replay", "--example", "--json"), ("compare", "mmap1", "--json"), ("compare", "mmap1", "--plot"),
    ("check", "all", "--json"), ("check", "all", "--html"), ("conformance", "spf", "--json"), ("list", "--json"),
])
def test_what_cannot_be_written_is_refused_first(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing has run: there is nothing on standard output."""
    assert "nowhere/x.png" in fails(*arguments, tmp_path / "nowhere" / "x.png")
    if "--plot" not in arguments:
        assert "Is a directory" in fails(*arguments, tmp_path)


def test_a_file_is_no_directory_for_tapes() -> None:
    assert "File exists" in fails("conformance", "spf", "--save", TRACE)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted(jobs: str) -> None:
    """Ctrl-C in a terminal goes to every process of the command."""
    with subprocess.Popen([sys.executable, "-u", "-m", "pykmm.cli", "check", "all", "--jobs", jobs],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("scenario")
        assert "R1-ptl-spin" in running.stdout.readline()       # workers are there
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "pykmm: interrupted\n"


def test_tables_for_narrow_terminals_leave_figures_out() -> None:
    command = ("compare", "mmap1[iterations=5]", "page_fault1[size=16K]", "-s", "mmap_sem,per_vma_lock-refcount", "-e",
               "native", "--cpus", "1,2", "-r", "1")
    wide, narrow = pykmm(*command, COLUMNS="400").stdout, pykmm(*command, COLUMNS="80").stdout
    for text in (wide, narrow):
        assert "\N{HORIZONTAL ELLIPSIS}" not in text       # nothing is cut
        assert "median" in text
    assert max(map(len, narrow.splitlines())) < 130
    for word in ("quartiles", "fastest", "outcome of faults"):
        assert word in wide
    assert "fastest" not in narrow
    assert "per_vma_lock-refcount" in wide
