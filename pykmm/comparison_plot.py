# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons as pictures, with matplotlib (the extra ``plot``): a panel per tape, medians with their quartiles.

With several numbers of CPUs a panel has a line per strategy over the CPUs, else a bar per strategy.
"""
from __future__ import annotations

import math
import os
import statistics
from typing import TYPE_CHECKING, Any

from pykmm.comparison import Spread, processors
from pykmm.comparison_report import format_rate, row_label

if TYPE_CHECKING:
    from pykmm.comparison import Comparison, Row

__all__ = ["SUFFIXES", "check_target", "plot"]

SUFFIXES = (".png", ".svg")
#: Okabe and Ito's colours, which people with any colour vision tell apart; the baseline is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#6A3D9A")
MARKERS = "sD^vPX<>p*h"
BASELINE = "#000000"
HOST = "#888888"


def check_target(path: str | os.PathLike[str]) -> None:
    """ValueError when nothing can be drawn into `path`: another suffix, no such directory, or no matplotlib."""
    name = os.fspath(path)
    if os.path.splitext(name)[1].lower() not in SUFFIXES:
        raise ValueError(f"a plot is {' or '.join(SUFFIXES)}, not {name!r}")
    if not os.path.isdir(os.path.dirname(name) or "."):
        raise ValueError(f"no directory for the plot {name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"plots need matplotlib ({error}): pip install 'pykmm[plot]'") from None


class _Style:
    """One colour and marker per label, the same in every panel."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.looks: dict[str, tuple[str, str, str]] = {}
        for row in comparison.rows:
            label = row_label(comparison, row)
            if label in self.looks or not row.timed:
                continue
            used = sum(look[0] in COLOURS for look in self.looks.values())
            if row.strategy == comparison.baseline and not any(
                    look[0] == BASELINE for look in self.looks.values()):
                self.looks[label] = BASELINE, "o", "--"
            elif row.engine == "host":
                self.looks[label] = HOST, "o", ":"
            else:
                self.looks[label] = COLOURS[used % len(COLOURS)], MARKERS[used % len(MARKERS)], "-"

    def name(self, label: str) -> str:
        """The label in the legend; says which one is the baseline."""
        return f"{label} (baseline)" if self.looks[label][0] == BASELINE else label


def _figures(row: Row) -> tuple[Spread, str]:
    """What is drawn of a row, and its unit: a rate, else milliseconds."""
    if row.rates:
        return row.rate, f"{row.unit} per second"
    return Spread(*(1e3 * value for value in row.time)), "milliseconds"


def _lines(axes: Any, style: _Style, rows: list[Row]) -> None:
    counts = sorted({row.cpus for row in rows})
    place = {cpus: at for at, cpus in enumerate(counts)}
    labels = list(dict.fromkeys(row_label(style.comparison, row) for row in rows))
    for number, label in enumerate(labels):
        mine = sorted((row for row in rows if row_label(style.comparison, row) == label), key=lambda row: row.cpus)
        colour, marker, dashes = style.looks[label]
        # A little apart, so that error bars of neighbours do not hide each other.
        shift = (number - (len(labels) - 1) / 2) * 0.05
        at = [place[row.cpus] + shift for row in mine]
        figures = [_figures(row)[0] for row in mine]
        axes.errorbar(at, [figure.median for figure in figures],
                      yerr=[[figure.median - figure.low for figure in figures],
                            [figure.high - figure.median for figure in figures]],
                      color=colour, marker=marker, linestyle=dashes, markersize=6, capsize=3,
                      linewidth=2.2 if colour == BASELINE else 1.4, label=style.name(label),
                      zorder=2 if colour == BASELINE else 3)
    axes.set_xticks(list(place.values()), [str(cpus) for cpus in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_xlabel("threads" if rows[0].rates else "simulated CPUs")
    axes.set_ylabel(f"{_figures(rows[0])[1]}\n({'more' if rows[0].rates else 'less'} is better)")
    crowded = [place[row.cpus] for row in rows if row.oversubscribed]
    axes.set_ylim(0, max(_figures(row)[0].high for row in rows) * (1.22 if crowded else 1.05))
    if crowded:
        axes.axvspan(min(crowded) - 0.5, len(counts) - 0.5, color="#999999", alpha=0.18, zorder=0)
        axes.text(len(counts) - 0.53, 0.98, f"more threads than\nprocessors ({processors()})", fontsize=7,
                  color="#444444", ha="right", va="top", transform=axes.get_xaxis_transform())


def _bars(axes: Any, style: _Style, rows: list[Row]) -> None:
    for at, row in enumerate(rows):
        label = row_label(style.comparison, row)
        figure, _ = _figures(row)
        axes.barh(at, figure.median, xerr=[[figure.median - figure.low], [figure.high - figure.median]],
                  color=style.looks[label][0], alpha=0.85, capsize=4, ecolor="#CC3311", height=0.66,
                  hatch="//" if row.oversubscribed else None, edgecolor="white")
        ratio = statistics.median(row.speedups) if row.rates else row.ratio
        axes.annotate(f"{ratio:.2f}x", (figure.high, at), xytext=(7, 0), textcoords="offset points", va="center",
                      fontsize=8, zorder=6, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    base = next((row for row in rows if row.strategy == style.comparison.baseline), rows[0])
    middle = _figures(base)[0].median
    axes.axvline(middle, color=BASELINE, linestyle="--", linewidth=1.2, zorder=5)
    names = [row_label(style.comparison, row) for row in rows]
    axes.set_yticks(range(len(rows)), [style.name(name) if row is base else name
                                       for name, row in zip(names, rows, strict=True)])
    axes.invert_yaxis()
    better = "more is better" if rows[0].rates else "less is better"
    crowded = any(row.oversubscribed for row in rows)
    axes.set_xlabel(f"{_figures(rows[0])[1]} ({better})"
                    + (f"\nhatched: more threads than processors ({processors()})" if crowded else ""))
    axes.set_xlim(0, max(_figures(row)[0].high for row in rows) * 1.18)


def plot(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw the rows that have times. ValueError: nothing to draw, or as :func:`check_target`."""
    check_target(path)
    panels = [rows for workload in comparison.workloads
              if (rows := [row for row in comparison.of(workload) if row.timed])]
    if not panels:
        raise ValueError("nothing to draw: no row has a time (the check engine has no clock)")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style = _Style(comparison)
    over_cpus = any(len({row.cpus for row in rows}) > 1 for rows in panels)
    columns = min(len(panels), math.ceil(math.sqrt(len(panels))) if over_cpus else 2)
    lines = math.ceil(len(panels) / columns)
    tall = 3.5 if over_cpus else max(1.4 + 0.36 * len(rows) for rows in panels)
    wide = 4.4 if over_cpus else 6.6
    across = max(wide * columns, 7.0)
    labels = list(style.looks) if over_cpus else []
    ncols = _legend_columns([style.name(label) for label in labels], across)
    legend = 0.19 * math.ceil(len(labels) / ncols)      # inches; the first few lines of it are in the margin
    figure = Figure(figsize=(across, tall * lines + 0.9 + max(legend, 0.4)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, rows in zip(grid.flat, panels, strict=False):
        name = os.path.basename(rows[0].workload) or "tape"
        cpus = {row.cpus for row in rows}
        if len(cpus) > 1:
            _lines(axes, style, rows)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value) if value else "0"))
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        else:
            _bars(axes, style, rows)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value) if value else "0"))
            number = cpus.pop()
            name += f", {number} {'thread' if rows[0].rates else 'CPU'}{'' if number == 1 else 's'}"
        axes.set_title(_wrapped(name), fontsize=10)
        axes.grid(axis="y" if len({row.cpus for row in rows}) > 1 else "x", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    runs = f"{comparison.repeats} runs" if comparison.repeats > 1 else "1 run"
    engines = ", ".join(dict.fromkeys(row.engine for rows in panels for row in rows))
    arches = ", ".join(dict.fromkeys(row.arch for rows in panels for row in rows if row.engine != "host"))
    about = f"engine {engines}" + (f"; arch {arches}" if arches else "")
    figure.suptitle(f"Fault strategies compared ({about})\n"
                    f"median of {runs}, error bars: quartiles; {processors()} processors"
                    + ("" if over_cpus else f"; dashed: {comparison.baseline}, 1.00x"),
                    fontsize=11)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False,
                      fontsize=9)
    figure.savefig(path, dpi=130)


def _legend_columns(labels: list[str], across: float) -> int:
    """How many columns of these names fit into a picture of so many inches, at most four."""
    longest = max(map(len, labels), default=1)
    return max(1, min(4, len(labels), int(across / (0.078 * longest + 0.65))))


def _wrapped(text: str, width: int = 44) -> str:
    """A long name on several lines, broken behind commas and brackets."""
    lines, line = [], ""
    for part in text.replace(",", ",\0").replace("[", "[\0").split("\0"):
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line])
