# SPDX-License-Identifier: GPL-2.0-only
"""Linters, and the house rules that no linter knows, over the source tree."""
from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOPS = ("pykmm", "pykmm_ext", "plugins", "tests", "benchmarks", "docs", ".ci")
SPDX = "SPDX-License-Identifier: GPL-2.0-only"


def files(*suffixes: str, tops: tuple[str, ...] = TOPS) -> list[pathlib.Path]:
    """Return the files of the tree that are sources (nothing that a build or a tool made)."""
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.endswith((".so", ".html"))]
    if tops is not TOPS:
        found = []
    for top in tops:
        for directory, names, members in os.walk(ROOT / top):
            names[:] = [n for n in names if n not in ("__pycache__", "_build") and not n.endswith(".egg-info")]
            found += [pathlib.Path(directory, member) for member in members]
    generated = {path.with_suffix(".c") for path in found if path.suffix == ".pyx"}
    return sorted(path for path in found if path not in generated and path.suffix not in (".so", ".pyc", ".html")
                  and (not suffixes or path.suffix in suffixes))


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def tool(*arguments: str, **environment: str) -> None:
    """Run a tool of this interpreter's environment on the tree; its output is the failure."""
    # cython-lint runs pycodestyle by name.
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": path, **environment})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_ruff() -> None:
    tool("-m", "ruff", "check", "--no-cache", ".")


def test_cython_lint() -> None:
    tool("-m", "cython_lint.cython_lint", *map(name, files(".pyx", ".pxd", tops=("pykmm_ext", "plugins", "tests"))))


def test_mypy_strict(tmp_path: pathlib.Path) -> None:
    """The library and the plugins, under the names that they are installed as."""
    for package, directory in (("pykmm", "pykmm"), ("pykmm_ext", "pykmm_ext"), ("pykmm_plugins", "plugins")):
        (tmp_path / package).symlink_to(ROOT / directory, target_is_directory=True)
    tool("-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "-p", "pykmm", "-p", "pykmm_plugins",
         MYPYPATH=str(tmp_path))


def test_spdx_comes_first() -> None:
    bad = []
    for path in files():
        if path.name in ("LICENSE", "py.typed") or (path.parent.name == "data" and path.suffix != ".py"):
            continue
        lines = path.read_bytes().split(b"\n", 2)
        first = lines[1] if lines[0].startswith(b"#!") and len(lines) > 1 else lines[0]
        if SPDX not in first.decode("utf-8", "replace"):
            bad.append(name(path))
    assert not bad, "first line has no SPDX identifier: " + ", ".join(bad)


def test_speaks_of_itself_alone() -> None:
    """No path of one machine, no registry host, nothing about how the work is organised."""
    words = [  # each with a character class, so that it does not find itself here
        r"/wor[k]/", r"/roo[t]/", r"/hom[e]/\w", r"/far[m]/", r"/tm[p]/venv", r"\.librar[y]/",
        r"pypi\.(?:or[g]|python)", r"pythonhoste[d]", r"index-ur[l]", r"developer sessio[n]", r"this sessio[n]",
        r"\bissu[e] [0-9#]", r"\bthe brie[f]\b", r"\bTOD[O]\b", r"\bFIXM[E]\b", r"\bXX[X]\b",
    ]
    pattern = re.compile("|".join(words))
    bad = []
    for path in files():
        if path.suffix == ".xz" or path.name == "LICENSE" or (path.parent.name == "data" and path.suffix == ".txt"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if pattern.search(line):
                bad.append(f"{name(path)}:{number}: {line.strip()}")
    assert not bad, "\n".join(bad)


def test_lines_fit() -> None:
    """C headers, documentation and shell have no linter for it."""
    bad = [f"{name(path)}:{number}: {len(line)} characters" for path in files(".h", ".rst", ".md", "")
           if path.name not in ("LICENSE", "py.typed")
           for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
           if len(line) > (130 if path.suffix == ".h" else 200)]
    assert not bad, "\n".join(bad)


# -- Cython ---------------------------------------------------------------------------------------

SELF_TEST = ("_test", "_bench", "torture")
KERNEL_FILE = re.compile(r"\b(?:arch|block|drivers|fs|include|init|kernel|lib|mm|tools|asm-generic|linux)/[\w./{},*-]+")


def docstring(path: pathlib.Path) -> str:
    """Return the module docstring of a .pyx: the first string after its comments."""
    with path.open("rb") as stream:
        for token in tokenize.tokenize(stream.readline):
            if token.type == tokenize.STRING:
                return str(ast.literal_eval(token.string))
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING):
                return ""
    return ""


@pytest.mark.parametrize("path", files(".pyx", tops=("pykmm_ext", "plugins")), ids=name)
def test_docstring_names_the_kernel_file_or_the_role(path: pathlib.Path) -> None:
    first = docstring(path).strip().partition("\n")[0]
    assert len(first) >= 15, f"{name(path)}: the docstring does not say what the module is"
    if path.parent.name in ("mm", "kernel") and not path.stem.endswith(SELF_TEST):
        assert KERNEL_FILE.search(first), f"{name(path)}: the first docstring line names no kernel file: {first!r}"


CDEF = re.compile(r"^(?P<indent> *)(?:@staticmethod\s+)?cdef (?P<inline>inline )?[\w .*]*?\**(?P<name>\w+)\("
                  r"(?=.*\bnogil\b *:?)")


def length(lines: list[str], start: int) -> int:
    """Return how many lines the indented block at `start` has."""
    count = 0
    for line in lines[start:]:
        if line and not line.startswith(" "):
            break
        count += bool(line.strip())
    return count


def declarations(path: pathlib.Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (name, line, has a comment) of each nogil C function.

    A comment counts when it stands above the function, above the unbroken run of declarations that the function
    stands in, or (.pyx) as the first line of the body. A helper of a few lines that gets no Cpu has no context of
    its own.
    """
    lines = path.read_text("utf-8").splitlines()
    commented = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            commented = False
            continue
        if stripped.startswith("#"):
            commented = True
            continue
        if not re.match(r" *cdef ", line) or "(" not in line:
            if path.suffix == ".pyx" and not line.startswith(" ") and not stripped.startswith(("@", ")")):
                commented = False
            continue
        statement = line
        last = number
        while statement.count("(") > statement.count(")") and last + 1 < len(lines):
            last += 1
            statement += " " + lines[last].strip()
        match = CDEF.match(statement)
        if match is None or "(*" in statement[match.start("name"):match.end("name") + 2]:
            continue
        body = lines[last + 1].strip() if path.suffix == ".pyx" and last + 1 < len(lines) else ""
        said = commented or body.startswith(('"""', "#")) or "#" in line
        yield match["name"], number + 1, said or ("Cpu *" not in statement and length(lines, last + 1) <= 6)
        if path.suffix == ".pyx":
            commented = False


def test_every_c_function_has_its_context() -> None:
    bad = []
    strategies = [path for path in files(".pyx", tops=("plugins",)) if path.parent.name == "strategies"]
    for path in [*files(".pyx", tops=("pykmm_ext",)), *strategies]:
        header = path.with_suffix(".pxd")
        said = {function for function, _, comment in declarations(header) if comment} if header.exists() else set()
        bad += [f"{name(path)}:{line}: {function}" for function, line, comment in declarations(path)
                if not comment and function not in said and not path.stem.endswith(SELF_TEST)]
    assert not bad, "no comment that says the context:\n" + "\n".join(bad)
