# SPDX-License-Identifier: GPL-2.0-only
"""pykmm.testing.benchmark_workload: what the page about comparing shows, run as it says."""
from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("pytest_benchmark", reason="the extra bench")

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "howto" / "compare.rst"


def run(work: pathlib.Path, *options: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench_mine.py", *options],
                          cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_saved_and_compared(tmp_path: pathlib.Path) -> None:
    block = PAGE.read_text("utf-8").partition("``bench_mine.py``:")[2].partition(".. code-block:: python\n\n")[2]
    code = "\n".join(line[3:] for line in block.partition("\nThe time of")[0].splitlines())
    assert "benchmark_workload" in code
    (tmp_path / "bench_mine.py").write_text(code.replace("size=1M", "size=64K"), "utf-8")
    run(tmp_path, "--benchmark-save=before")
    (saved,) = (tmp_path / ".benchmarks").rglob("*before.json")
    found = json.loads(saved.read_text("utf-8"))["benchmarks"]
    assert [each["params"]["strategy"] for each in found] == ["mmap_sem", "spf"]
    for each in found:
        info = each["extra_info"]
        assert info["faults_per_second"] > 0
        # 32 faults of two threads: the time of a round is that of the work, not of the machine around it.
        assert each["stats"]["median"] == pytest.approx(32 / info["faults_per_second"], rel=1.0)
    shown = run(tmp_path, "--benchmark-compare=*before")
    assert "test_faults[mmap_sem] (0001_before)" in shown
    assert "test_faults[spf] (NOW)" in shown
