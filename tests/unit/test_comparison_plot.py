# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/comparison_plot.py: what can be read in a picture, and what cannot be drawn."""
from __future__ import annotations

import builtins
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from comparison_rows import row

import pykmm
from pykmm.comparison import Comparison, _pair
from pykmm.comparison_plot import _legend_columns, check_target, plot

pytest.importorskip("matplotlib", reason="the extra plot")

SMALL = "page_fault1[size=64K]"


def words(path: Path) -> str:
    """What can be read in an SVG: matplotlib leaves the text of every label beside its outlines, as a comment."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.parse(path, parser).getroot()
    return "\n".join(item.text or "" for item in root.iter() if item.tag is ET.Comment)


def test_lines_over_cpus(tmp_path: Path) -> None:
    """Title, axes with units, a legend that names the baseline, and a label where there are too few processors."""
    rows = [row("mmap_sem", cpus, [1, 2, 3], 9_000_000 * cpus, workload="w[size=4K]") for cpus in (1, 4096)]
    rows += [row("spf", cpus, [1, 1, 3], 9_000_000 * cpus, workload="w[size=4K]") for cpus in (1, 4096)]
    rows += [row("linux", cpus, [8, 9, 9], 9_000_000 * cpus, "host", "x86_64", "w[size=4K]") for cpus in (1, 4096)]
    _pair(rows, "mmap_sem")
    path = tmp_path / "x.svg"
    plot(Comparison(pykmm.Tape(), rows, 3, "mmap_sem"), path)
    read = words(path)
    for word in ("Fault strategies compared", "median of 3 runs", "faults per second", "(more is better)", "threads",
                 "mmap_sem (baseline)", "spf", "linux (host)", "w[size=4K]", "4096", "more threads than"):
        assert word in read, word


def test_bars(tmp_path: Path) -> None:
    rows = [row("mmap_sem", 2, [0.001, 0.002, 0.003]), row("spf", 2, [0.0005, 0.001, 0.0015])]
    _pair(rows, "mmap_sem")
    path = tmp_path / "x.svg"
    plot(Comparison(pykmm.Tape(), rows, 3, "mmap_sem"), path)
    read = words(path)
    for word in ("milliseconds (less is better)", "mmap_sem (baseline)", "0.50x", "1.00x", "w, 2 CPUs"):
        assert word in read, word


def test_png(tmp_path: Path) -> None:
    path = tmp_path / "x.PNG"
    pykmm.compare([SMALL, "mmap1[iterations=5]"], ["mmap_sem", "spf"], cpus=[1, 2]).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg, not"):
        check_target("x.gif")
    with pytest.raises(ValueError, match="no directory"):
        check_target(tmp_path / "none" / "x.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        pykmm.compare("mmap1[iterations=1]", ["spf"], ["check"], cpus=2).plot(tmp_path / "x.png")
    real = builtins.__import__

    def no_matplotlib(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ValueError, match=r"pip install 'pykmm\[plot\]'"):
        check_target(tmp_path / "x.png")
    assert not os.listdir(tmp_path)


def test_the_legend_fits() -> None:
    """Long names get fewer columns; where one does not fit, there is one column."""
    assert _legend_columns(["spf", "mmap_sem"], 8.8) == 2
    assert _legend_columns(["spf"] * 9, 8.8) == 4
    assert _legend_columns(["spf-rfc5[fixes=all,ptl=trylock] (x86-5level)"] * 9, 8.8) == 2
    assert _legend_columns(["x" * 200] * 9, 8.8) == 1
    assert _legend_columns([], 8.8) >= 1
