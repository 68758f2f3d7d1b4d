# SPDX-License-Identifier: GPL-2.0-only
"""The figures of a suite as tables for a page: ``python docs/_ext/suite_table.py figures.json [page.rst [suite]]``.

``figures.json`` is what ``pykmm compare --suite NAME --json figures.json`` wrote. Prints the same two tables as
``--summary``, as reStructuredText; with a page, puts them between its lines ``.. suite: begin`` and ``.. suite: end``
(``.. suite NAME: begin`` where a suite is named).
"""
from __future__ import annotations

import json
import pathlib
import statistics
import sys
from typing import Any

from pykmm.comparison_report import format_rate


def tables(values: dict[str, Any]) -> str:
    """Rates relative to the baseline on as many CPUs, and, where there are several numbers, on the fewest."""
    rows = [row for row in values["rows"] if row.get("rates")]
    base = values["baseline"]
    several = len({row["arch"] for row in rows if row["engine"] != "host"}) > 1

    def label(row: dict[str, Any]) -> str:
        if row["engine"] == "host":
            return "linux (host)"
        return f"{row['strategy']} ({row['arch']})" if several else str(row["strategy"])

    labels = list(dict.fromkeys(map(label, rows)))
    least = min(row["cpus"] for row in rows)
    out = []
    titles = [(f"Rate over that of ``{base}`` on as many CPUs", lambda row: statistics.median(row["speedups"])),
              (f"Rate over that of ``{base}`` on {least} CPU{'s' * (least > 1)}",
               lambda row: statistics.median(row["scaling"]))]
    for title, cell in titles[:len({row["cpus"] for row in rows})]:
        out.append(f"{title} (above 1: faster):\n\n.. csv-table::\n   :delim: |\n   :header-rows: 1\n")
        out.append(f"   workload | CPUs | {base}, per second | " + " | ".join(labels))
        for workload, cpus in dict.fromkeys((row["workload"], row["cpus"]) for row in rows):
            group = [row for row in rows if (row["workload"], row["cpus"]) == (workload, cpus)]
            rate = next((row["rate"] for row in group if row["strategy"] == base), group[0]["rate"])
            star = "\\*" if group[0]["oversubscribed"] else ""
            cells = {label(row): f"{cell(row):.2f}" for row in group}
            out.append(f"   ``{workload}`` | {cpus}{star} | {format_rate(rate)} | "
                       + " | ".join(cells.get(name, "") for name in labels))
        out.append("")
    return "\n".join(out)


def main(figures: str, page: str = "", suite: str = "") -> None:
    """Print, or replace in `page`."""
    mark = f".. suite {suite}:" if suite else ".. suite:"
    text = tables(json.loads(pathlib.Path(figures).read_text("utf-8")))
    if not page:
        print(text)
        return
    path = pathlib.Path(page)
    head, begin, rest = path.read_text("utf-8").partition(f"{mark} begin\n")
    _, end, tail = rest.partition(f"{mark} end\n")
    if not begin or not end:
        sys.exit(f"{page}: no lines '{mark} begin' and '{mark} end'")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
