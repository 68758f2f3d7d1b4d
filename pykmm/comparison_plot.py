# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons as pictures, with matplotlib (the extra ``plot``): a panel per tape and arch, medians with quartiles.

With several numbers of CPUs a panel has a line per strategy over the CPUs, else a bar per strategy. A strategy looks
the same in all of them.
"""
from __future__ import annotations

import math
import os
import statistics
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykmm.comparison import Spread, processors
from pykmm.comparison_report import format_rate
from pykmm.report import workload_name

if TYPE_CHECKING:
    from pykmm.comparison import Comparison, Row

__all__ = ["SUFFIXES", "check_target", "plot"]

SUFFIXES = (".png", ".svg")
#: Okabe and Ito's colours, which people with any colour vision tell apart; the baseline is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#6A3D9A")
MARKERS = "sD^vPX<>p*h"
BASELINE = "#000000"
#: Lines in a panel, at most.
SERIES = 8
#: How far the points of one number of CPUs lie apart: each from the next, and all of them; 1 is to the next number.
STEP, SPREAD = 0.05, 0.3
#: The host is not drawn beside an arch if it is so many times as high as everything else.
FAR = 2.5
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
    """One colour, marker and line per strategy, the same in every panel; the host has its own."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.many_arches = len(_arches(comparison.rows)) > 1
        self.looks: dict[str, tuple[str, str, str]] = {}
        used = 0
        for row in comparison.rows:
            label = self.label(row)
            if label in self.looks or not row.timed:
                continue
            if row.strategy == comparison.baseline:
                self.looks[label] = BASELINE, "o", "--"
            elif row.engine == "host":
                self.looks[label] = HOST, "o", ":"
            else:
                self.looks[label] = COLOURS[used % len(COLOURS)], MARKERS[used % len(MARKERS)], "-"
                used += 1

    def label(self, row: Row) -> str:
        """What a series is called: panels are of one arch, so it need not say which."""
        return "linux (host)" if row.engine == "host" else row.strategy

    def name(self, label: str) -> str:
        """The label in the legend; says which one is the baseline."""
        return f"{label} (baseline)" if self.looks[label][0] == BASELINE else label

    def reference(self, rows: list[Row]) -> Row:
        """The row that ratios of these, of one tape and number of CPUs, refer to: of the first arch."""
        group = [row for row in self.comparison.of(rows[0].workload) if row.timed and row.cpus == rows[0].cpus]
        return next((row for row in group if row.strategy == self.comparison.baseline), group[0])


@dataclass(frozen=True)
class _Panel:
    """Rows of one tape that share axes."""

    rows: list[Row]
    arch: str = ""      #: where there are several
    part: str = ""      #: which one of several with as many strategies as can be told apart

    @property
    def title(self) -> str:
        name = os.path.basename(workload_name(self.rows[0].workload))
        cpus = {row.cpus for row in self.rows}
        if len(cpus) == 1:
            number = cpus.pop()
            name += f", {number} {'thread' if self.rows[0].rates else 'CPU'}{'' if number == 1 else 's'}"
        return "\n".join([*_wrapped(name), *filter(None, [", ".join(filter(None, [self.arch, self.part]))])])


def _arches(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.arch for row in rows if row.timed and row.engine != "host"))


def _panels(style: _Style, rows: list[Row]) -> list[_Panel]:
    """The rows of a tape, an arch each; the host beside every one. Not more series than a reader can tell apart: then
    there are several panels, with the baseline and the host in each."""
    panels = []
    for arch in (_arches(rows) if style.many_arches else []) or [""]:
        mine = [row for row in rows if not arch or row.engine == "host" or row.arch == arch]
        fixed = {style.label(row) for row in mine if row.engine == "host" or row.strategy == style.comparison.baseline}
        others = [label for label in dict.fromkeys(map(style.label, mine)) if label not in fixed]
        over_cpus = len({row.cpus for row in mine}) > 1     # bars have their names beside them
        count = math.ceil(len(others) / (SERIES - len(fixed))) if over_cpus else 1
        size = math.ceil(len(others) / count) if count else 0
        for part in range(max(count, 1)):
            shown = {*fixed, *others[part * size:(part + 1) * size]}
            panels.append(_Panel([row for row in mine if style.label(row) in shown], arch,
                                 f"{part + 1} of {count}" if count > 1 else ""))
    return panels


def _figures(row: Row) -> tuple[Spread, str]:
    """What is drawn of a row, and its unit: a rate, else milliseconds."""
    if row.rates:
        return row.rate, f"{row.unit} per second"
    return Spread(*(1e3 * value for value in row.time)), "milliseconds"


def _within(style: _Style, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What is drawn of a panel, and what is only written there: the host, beside an arch with larger pages, would leave
    no room for the strategies."""
    host = [row for row in rows if row.engine == "host"]
    others = [row for row in rows if row.engine != "host"]
    if not style.many_arches or not host or not others:
        return rows, []
    highest, most = (max(_figures(row)[0].median for row in some) for some in (host, others))
    return (others, host) if highest > FAR * most else (rows, [])


def _lines(axes: Any, style: _Style, rows: list[Row]) -> None:
    counts = sorted({row.cpus for row in rows})
    place = {cpus: at for at, cpus in enumerate(counts)}
    crowded = [place[row.cpus] for row in rows if row.oversubscribed]
    rows, away = _within(style, rows)
    labels = list(dict.fromkeys(map(style.label, rows)))
    step = min(STEP, SPREAD / max(len(labels) - 1, 1))
    for number, label in enumerate(labels):
        mine = sorted((row for row in rows if style.label(row) == label), key=lambda row: row.cpus)
        colour, marker, dashes = style.looks[label]
        # A little apart, so that error bars of neighbours do not hide each other.
        shift = (number - (len(labels) - 1) / 2) * step
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
    axes.set_ylim(0, max(_figures(row)[0].high for row in rows) * (1.22 if crowded or away else 1.05))
    if away:
        medians = [_figures(row)[0].median for row in away]
        axes.text(-0.47, 0.98, f"not drawn: {style.label(away[0])},\n{format_rate(min(medians))} to "
                  f"{format_rate(max(medians))}", fontsize=7, color="#444444", va="top",
                  transform=axes.get_xaxis_transform())
    if crowded:
        axes.axvspan(min(crowded) - 0.5, len(counts) - 0.5, color="#999999", alpha=0.18, zorder=0)
        axes.text(len(counts) - 0.53, 0.98, f"more threads than\nprocessors ({processors()})", fontsize=7,
                  color="#444444", ha="right", va="top", transform=axes.get_xaxis_transform())


def _bars(axes: Any, style: _Style, rows: list[Row]) -> None:
    for at, row in enumerate(rows):
        label = style.label(row)
        figure, _ = _figures(row)
        axes.barh(at, figure.median, xerr=[[figure.median - figure.low], [figure.high - figure.median]],
                  color=style.looks[label][0], alpha=0.85, capsize=4, ecolor="#CC3311", height=0.66,
                  hatch="//" if row.oversubscribed else None, edgecolor="white")
        ratio = statistics.median(row.speedups) if row.rates else row.ratio
        axes.annotate(f"{ratio:.2f}x", (figure.high, at), xytext=(7, 0), textcoords="offset points", va="center",
                      fontsize=8, zorder=6, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    base = style.reference(rows)
    middle = _figures(base)[0].median
    axes.axvline(middle, color=BASELINE, linestyle="--", linewidth=1.2, zorder=5)
    names = [style.label(row) for row in rows]
    axes.set_yticks(range(len(rows)), [style.name(name) if row is base else name
                                       for name, row in zip(names, rows, strict=True)])
    axes.invert_yaxis()
    better = "more is better" if rows[0].rates else "less is better"
    crowded = any(row.oversubscribed for row in rows)
    axes.set_xlabel(f"{_figures(rows[0])[1]} ({better})"
                    + (f"\nhatched: more threads than processors ({processors()})" if crowded else ""))
    axes.set_xlim(0, max(middle, *(_figures(row)[0].high for row in rows)) * 1.18)


def plot(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw the rows that have times. ValueError: nothing to draw, or as :func:`check_target`."""
    check_target(path)
    style = _Style(comparison)
    groups = [_panels(style, rows) for workload in comparison.workloads
              if (rows := [row for row in comparison.of(workload) if row.timed])]
    if not groups:
        raise ValueError("nothing to draw: no row has a time (the check engine has no clock)")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panels = [panel for group in groups for panel in group]
    over_cpus = any(len({row.cpus for row in panel.rows}) > 1 for panel in panels)
    columns = _columns([len(group) for group in groups], over_cpus)
    lines = math.ceil(len(panels) / columns)
    titles = max(panel.title.count("\n") for panel in panels)
    tall = (3.5 if over_cpus else max(1.4 + 0.36 * len(panel.rows) for panel in panels)) + 0.15 * titles
    wide = 4.4 if over_cpus else 6.6
    across = max(wide * columns, 7.0)
    labels = list(style.looks) if over_cpus else []
    ncols = _legend_columns([style.name(label) for label in labels], across)
    legend = 0.19 * math.ceil(len(labels) / ncols)      # inches; the first few lines of it are in the margin
    about = _about(style, panels, over_cpus, int(across * 12))
    figure = Figure(figsize=(across, tall * lines + 0.5 + 0.2 * about.count("\n") + max(legend, 0.4)),
                    layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        lined = len({row.cpus for row in panel.rows}) > 1
        (_lines if lined else _bars)(axes, style, panel.rows)
        if lined:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        (axes.yaxis if lined else axes.xaxis).set_major_formatter(
            FuncFormatter(lambda value, _: format_rate(value) if value else "0"))
        axes.set_title(panel.title, fontsize=10)
        axes.grid(axis="y" if lined else "x", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(about, fontsize=11)
    if handles:
        order = [style.name(label) for label in labels if style.name(label) in handles]
        figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=ncols, frameon=False,
                      fontsize=9)
    figure.savefig(path, dpi=130)


def _about(style: _Style, panels: list[_Panel], over_cpus: bool, width: int) -> str:
    """The title of the whole picture, in lines of so many characters."""
    comparison = style.comparison
    rows = [row for panel in panels for row in panel.rows]
    runs = f"{comparison.repeats} runs" if comparison.repeats > 1 else "1 run"
    engines = ", ".join(dict.fromkeys(row.engine for row in rows))
    arches = ", ".join(_arches(rows))
    about = f"engine {engines}" + (f"; arch {arches}" if arches else "")
    dashed = "" if over_cpus else f"; dashed: {comparison.baseline}" + (
        f" on {style.reference(rows).arch}" if style.many_arches and comparison.baseline != "linux" else "") + ", 1.00x"
    return "\n".join(line for text in (
        f"Fault strategies compared ({about})",
        f"median of {runs}, error bars: quartiles; {processors()} processors{dashed}",
    ) for line in textwrap.wrap(text, width, break_on_hyphens=False))


def _columns(groups: list[int], over_cpus: bool) -> int:
    """How many panels stand side by side; the numbers are those of the panels of each tape."""
    count = sum(groups)
    if len(groups) > 1 and len(set(groups)) == 1 and 1 < groups[0] <= 4:
        return groups[0]        # a line for each tape, so that a column is an arch
    return min(count, math.ceil(math.sqrt(count)) if over_cpus else 2)


def _legend_columns(labels: list[str], across: float) -> int:
    """How many columns of these names fit into a picture of so many inches, at most four."""
    longest = max(map(len, labels), default=1)
    return max(1, min(4, len(labels), int(across / (0.078 * longest + 0.65))))


def _wrapped(text: str, width: int = 44) -> list[str]:
    """A long name in several lines, broken behind commas and brackets."""
    lines, line = [], ""
    for part in text.replace(",", ",\0").replace("[", "[\0").split("\0"):
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = ""
        line += part
    return [*lines, line]
