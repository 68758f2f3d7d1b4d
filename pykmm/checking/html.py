# SPDX-License-Identifier: GPL-2.0-only
"""Reports as one HTML page that stands alone."""
from __future__ import annotations

import shlex
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykmm.checking.report import CheckReport, Violation
    from pykmm.checking.trace import Row, Trace

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em; color: #1d2129; background: #fff; }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1.05em; margin: 1.4em 0 .4em }
table { border-collapse: collapse; font: 13px/1.35 ui-monospace, monospace; }
th, td { text-align: left; vertical-align: top; padding: .18em .7em; border-bottom: 1px solid #e3e6ea; }
th { position: sticky; top: 0; background: #f4f6f8; }
td.step { text-align: right; color: #747d8a } .fn { color: #747d8a } .stale, .bad { color: #b3261e; font-weight: 600 }
.good { color: #1b6e36; font-weight: 600 } td.buffer { background: #fdf6e3 } td.irq { background: #eef3fd }
tr.aside { display: none } body.full tr.aside { display: table-row; opacity: .55 }
tr.last td { background: #fdecea } code { overflow-wrap: anywhere; background: #f4f6f8; padding: .1em .3em }
footer { color: #57606c; margin-top: .8em }
@media (prefers-color-scheme: dark) {
 body { background: #16191d; color: #dde2e8 } th, code { background: #22272e } th, td { border-color: #30363d }
 td.buffer { background: #2d2818 } td.irq { background: #1b2536 } tr.last td { background: #3b1d1b }
 .bad, .stale { color: #ff8a80 } .good { color: #6fd08c } }
"""


def _cell(row: Row) -> str:
    title = " < ".join(name for name in (row.function, *row.callers) if name)
    function = f'<br><span class="fn">{escape(row.function)}</span>' if row.function else ""
    return f'<td class="{row.agent}" title="{escape(title, quote=True)}">{escape(row.text)}{function}</td>'


def _row(row: Row, trace: Trace, last: bool) -> str:
    classes = " ".join(name for name, on in (("aside", row.step not in trace.past), ("last", last)) if on)
    cells = "".join(_cell(row) if cpu == row.cpu else "<td></td>" for cpu in range(trace.ncpus))
    notes = [f'<span class="stale">{escape(note)}</span>' if note.startswith("[") else escape(note)
             for note in row.notes]
    held = escape(", ".join(row.held)) + (" (IRQs off)" if row.irqs_off else "")
    return (f'<tr class="{classes}"><td class="step">{row.step}</td>{cells}<td>{"<br>".join(notes)}</td>'
            f"<td>{held}</td></tr>")


def _violation(violation: Violation) -> str:
    parts = [f'<h3><span class="bad">{escape(violation.kind)}</span>: {escape(violation.message)}</h3>']
    trace = violation.trace
    if trace is not None:
        heads = "".join(f"<th>Cpu {cpu}</th>" for cpu in range(trace.ncpus))
        rows = "\n".join(_row(row, trace, row is trace.rows[-1]) for row in trace.rows)
        parts.append(f"<table><thead><tr><th>step</th>{heads}<th></th><th>locks held</th></tr></thead><tbody>\n{rows}\n"
                     "</tbody></table>")
        hidden = len(trace.rows) - len(trace.causal())
        if hidden:
            parts.append("<p><label><input type=checkbox onchange=\"document.body.classList.toggle('full')\"> show the "
                         f"{hidden} steps that the end does not depend on</label></p>")
        if violation.locks:
            parts.append(f"<p>At the end: {escape('; '.join(violation.locks))}</p>")
    minimal = f" ({violation.minimal})" if violation.minimal else ""
    parts.append(f"<p>{len(violation.schedule)} steps, preemptions: {violation.preemptions}{escape(minimal)}</p>")
    if violation.token:
        parts.append(f"<p>Replay: <code>pykmm check --replay {escape(shlex.quote(violation.token))}</code></p>")
    return "\n".join(parts)


def page(reports: Iterable[CheckReport]) -> str:
    """A complete page of one or more reports, in their order."""
    reports = list(reports)
    parts = []
    if len(reports) > 1:
        rows = "".join(
            f'<tr><td><a href="#r{i}">{escape(r.name)}</a></td><td>{escape(r.variant)}</td><td class="'
            f'{"good" if r.ok else "bad"}">{escape("no violation" if r.ok else r.violations[0].kind)}</td>'
            f"<td>{r.executions:,}</td><td>{r.seconds:.2f} s</td></tr>" for i, r in enumerate(reports))
        parts.append("<table><thead><tr><th>what</th><th>variant</th><th>found</th><th>executions</th><th>time</th></tr>"
                     f"</thead><tbody>{rows}</tbody></table>")
    for i, report in enumerate(reports):
        parts.append(f'<section id="r{i}"><h2>{escape(report.title)}</h2>')
        parts += [_violation(violation) for violation in report.violations]
        if report.ok:
            parts.append('<p class="good">no violation found</p>')
        parts.append(f"<footer>{escape(report.footer)}; {report.blocked:,} blocked, {report.steps:,} steps, "
                     f"{report.executions_per_s:,.0f} executions/s</footer></section>")
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} searches"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f"<title>pykmm check: {escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>"
            "<h1>pykmm check</h1>\n" + "\n".join(parts) + "\n</body></html>\n")
