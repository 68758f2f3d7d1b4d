# SPDX-License-Identifier: GPL-2.0-only
"""The ``fidelity`` directive: every statement of the sources about where pykmm is not plainly Linux.

House rule: a docstring or comment that says ``simplified: …``, ``stands in for …`` or ``as Linux N.N`` is a statement.
The directive lists them under the file that makes them, so the page cannot fall behind the code.
"""
from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARK = re.compile(r"\b(?:simplified:|stands? in for\b|as Linux \d)", re.IGNORECASE)
LEADER = re.compile(r"^\s*(?:\"\"\"|/\*+|\*+/?|#+)?\s?")


def sources() -> list[pathlib.Path]:
    """The files that make statements."""
    found = []
    for top in ("pykmm_ext", "plugins", "pykmm"):
        for suffix in (".h", ".pxd", ".pyx", ".py"):
            found += (ROOT / top).rglob(f"*{suffix}")
    return sorted(path for path in found if not path.stem.endswith(("_test", "_bench", "torture")))


def subject(code: str) -> str:
    """The name that a comment behind code speaks of: ``u32 x;`` is about x."""
    names = re.findall(r"[A-Za-z_]\w*", code.partition("=")[0].partition("(")[0])
    return names[-1] if names else ""


def comments(text: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Yield (subject, paragraph) of the comments and docstrings; a paragraph is joined to one line."""
    paragraph: list[str] = []
    about = ""
    inside = False  # a C comment or a docstring
    opening, closing = ("/*", "*/") if suffix == ".h" else ('"""', '"""')
    for line in text.splitlines():
        words = code = ""
        ended = False
        if inside:
            words, found, _ = line.partition(closing)
            inside, ended = not found, bool(found)
        elif opening in line:
            code, _, words = line.partition(opening)
            words, found, _ = words.partition(closing)
            inside, ended = not found, bool(found)
            if paragraph:
                yield about, " ".join(paragraph)
                paragraph = []
        elif suffix != ".h" and "#" in line:
            code, _, words = line.partition("#")
            if code.strip() and paragraph:
                yield about, " ".join(paragraph)
                paragraph = []
        words = LEADER.sub("", words).strip()
        if words.startswith(("SPDX-License", "cython:")):
            words = ""
        if words:
            if not paragraph:
                about = subject(code)
            paragraph.append(words)
        if paragraph and (ended or (not words and not paragraph[-1].endswith("simplified:"))):
            yield about, " ".join(paragraph)
            paragraph = []
    if paragraph:
        yield about, " ".join(paragraph)


def statements(path: pathlib.Path) -> list[str]:
    """The statements of one file: the sentences that hold a mark."""
    found = []
    for about, paragraph in comments(path.read_text("utf-8"), path.suffix):
        before, listed, points = paragraph.partition("simplified: - ")
        if listed:
            found += [f"simplified: {point.strip()}" for point in points.split(" - ")]
            paragraph = before
        for sentence in re.split(r"(?<=[.;])\s+(?=[A-Z(]|simplified:|stands in)", paragraph):
            if MARK.search(sentence):
                said = sentence.strip().rstrip("*/;").strip()
                found.append(f"{about}: {said}" if about else said)
    return found


def setup(app):
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Fidelity(SphinxDirective):
        """``.. fidelity::`` has no options."""

        def run(self):
            result = []
            for path in sources():
                self.env.note_dependency(str(path))
                said = statements(path)
                if not said:
                    continue
                result.append(nodes.rubric("", "", nodes.literal(text=str(path.relative_to(ROOT)))))
                items = nodes.bullet_list()
                for sentence in said:
                    items += nodes.list_item("", nodes.paragraph(text=sentence))
                result.append(items)
            return result

    app.add_directive("fidelity", Fidelity)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
