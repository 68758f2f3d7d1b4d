# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/comparison_plot.py: what can be read in a picture, and what cannot be drawn."""
from __future__ import annotations

import builtins
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparison_rows import row

import pykmm
from pykmm.comparison import Comparison, _pair
from pykmm.comparison_plot import BASELINE, _legend_columns, check_target, plot

pytest.importorskip("matplotlib", reason="the extra plot")
from matplotlib.figure import Figure

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


STRATEGIES = ("mmap_sem", "spf", "spf-rfc5", "spf-2021", "per_vma_lock", "per_vma_lock-refcount", "lockless_gup")


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, strategies: Sequence[str], arches: Sequence[str],
          cpus: Sequence[int], workloads: Sequence[str] = ("w[size=2M]",), scale: dict[str, int] | None = None,
          ) -> tuple[Figure, list[Any]]:
    """A picture of that grid and the host, and its panels."""
    rows = []
    for workload in workloads:
        mine = []
        for count in cpus:
            mine += [row(name, count, [(at + 2) * (scale or {}).get(arch, 1)] * 2, 10**7, arch=arch, workload=workload)
                     for arch in arches for at, name in enumerate(strategies)]
            mine.append(row("linux", count, [9, 9], 10**7, "host", "x86_64", workload))
        _pair(mine, "mmap_sem")
        rows += mine
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **keywords: Any) -> None:
        figures.append(self)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    plot(Comparison(pykmm.Tape(), rows, 2, "mmap_sem"), path)
    return figures[0], [axes for axes in figures[0].axes if axes.axison]


def series(axes: Any) -> dict[str, tuple[str, list[float]]]:
    """Colour and places of the lines of a panel."""
    return {item.get_label(): (item.lines[0].get_color(), list(item.lines[0].get_xdata())) for item in axes.containers}


def test_many_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel per arch, a strategy with the same colour in all of them, and points in their own columns."""
    arches = ["x86", "x86-paravirt", "ppc64", "ppc64-4k"]
    figure, panels = drawn(monkeypatch, tmp_path / "x.png", STRATEGIES, arches, [1, 2, 4])
    assert [axes.get_title() for axes in panels] == [f"w[size=2M]\n{arch}" for arch in arches]
    colours: dict[str, set[str]] = {}
    for axes in panels:
        found = series(axes)
        assert len(found) == 8
        for label, (colour, places) in found.items():
            colours.setdefault(label, set()).add(colour)
            for place, column in zip(places, range(3), strict=True):
                assert abs(place - column) <= 0.2
        assert axes.get_xlim() == (-0.5, 2.5)
        assert axes.get_ylim()[0] == 0
        assert axes.get_yscale() == "linear"
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 8
    assert colours["mmap_sem (baseline)"] == {BASELINE}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mmap_sem (baseline)", *STRATEGIES[1:],
                                                                            "linux (host)"]


def test_more_strategies_than_can_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several panels then; each has the baseline and the host."""
    names = [*STRATEGIES, *(f"spf-rfc5[n={n}]" for n in range(10))]
    _, panels = drawn(monkeypatch, tmp_path / "x.png", names, ["x86"], [1, 2])
    assert [axes.get_title() for axes in panels] == [f"w[size=2M]\n{n} of 3" for n in (1, 2, 3)]
    everything: list[str] = []
    for axes in panels:
        found = series(axes)
        assert len(found) <= 8
        assert len({colour for colour, _ in found.values()}) == len(found)
        assert {"mmap_sem (baseline)", "linux (host)"} <= set(found)
        everything += set(found) - {"mmap_sem (baseline)", "linux (host)"}
    assert sorted(everything) == sorted(names[1:])


def test_a_host_far_above_is_written_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an arch with larger pages it would leave no room for the strategies."""
    _, (small, large) = drawn(monkeypatch, tmp_path / "x.png", STRATEGIES, ["x86", "ppc64"], [1, 2],
                              scale={"ppc64": 50})
    assert "linux (host)" in series(small)
    assert "linux (host)" not in series(large)
    assert "not drawn: linux (host),\n1.11M to 1.11M" in [text.get_text() for text in large.texts]
    assert large.get_ylim()[1] < 1.3 * 10**7 / 100


def test_a_line_of_panels_per_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one arch is one column."""
    _, panels = drawn(monkeypatch, tmp_path / "x.png", STRATEGIES[:2], ["x86", "ppc64"], [1, 2], ["a", "b", "c"])
    assert [axes.get_title() for axes in panels] == [f"{name}\n{arch}" for name in "abc" for arch in ("x86", "ppc64")]
    grid = panels[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (3, 2)


def test_bars_of_several_arches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that ratios refer to is in every panel, and said to be of the first arch."""
    figure, panels = drawn(monkeypatch, tmp_path / "x.png", STRATEGIES, ["x86", "ppc64"], [2], scale={"ppc64": 4})
    assert "dashed: mmap_sem on x86, 1.00x" in figure.get_suptitle()
    for axes in panels:
        (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert list(dashed.get_xdata()) == [5e6, 5e6]
        assert axes.get_xlim()[1] > 5e6
        assert len(axes.patches) == 8
    assert [axes.get_yticklabels()[0].get_text() for axes in panels] == ["mmap_sem (baseline)", "mmap_sem"]
