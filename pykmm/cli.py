# SPDX-License-Identifier: GPL-2.0-only
"""The command line. The first thing to try, which needs nothing beside an installed pykmm, is::

    pykmm replay --example

It replays the recording that is shipped in :mod:`pykmm.data`. Everything heavy is imported by the command that
needs it.

Exit status: 0 = done, and where end maps were recorded, every replay ended with them; 1 = the maps differ, ``check``
has found a violation, or a check of ``conformance`` has failed; 2 = wrong usage or bad input (the message says which
file and line); 130 = interrupted.
"""
from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from pykmm.checking.cli import check
from pykmm.compare_cli import compare
from pykmm.conformance.cli import conformance

if TYPE_CHECKING:
    from rich.console import Console

    from pykmm.comparison import Comparison, Row
    from pykmm.tape import Tape

EXAMPLE = "python-threads.perf-trace.txt.xz"
EXIT_MAPS_DIFFER = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
#: Columns of tables that go to a file.
WIDE = 400

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    name="pykmm", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Replay recorded memory behaviour under different page-fault strategies, and check them for races.",
    epilog="Exit status: 0 done, 1 the maps differ from the recorded ones, or check or conformance found something, "
           "2 wrong usage or bad input.",
)

Traces = Annotated[list[Path] | None, typer.Argument(
    metavar="TRACE...", help="Recordings (perf trace or strace text, plain, .xz or .gz) or saved tapes (.npz).")]
Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="A recording or a saved tape.")]
# What takes "A,B" may also be given again.
StrategyOption = Annotated[list[str] | None, typer.Option(
    "--strategy", "-s", metavar="A,B", help="Fault strategies, by name.  [default: mmap_sem,spf]")]
EngineOption = Annotated[list[str] | None, typer.Option(
    "--engine", "-e", metavar="A,B",
    help="native: threads in this process. host: real system calls on this kernel.  [default: native]")]
ArchOption = Annotated[list[str] | None, typer.Option(
    "--arch", metavar="A,B", help="Arch backends, by name.  [default: x86]")]
MemoryOption = Annotated[str | None, typer.Option(
    "--memory", metavar="SIZE", help="Simulated memory, like 1G; as much as the tape needs if not given.")]
RepeatOption = Annotated[int, typer.Option(
    "--repeat", "-r", min=1, max=10000, help="Runs per row; a row shows the fastest.")]
JsonOption = Annotated[str | None, typer.Option(
    "--json", metavar="FILE",
    help="Write every figure as JSON; - writes it to standard output, instead of the tables.")]


def _fail(message: str) -> typer.Exit:
    typer.echo(f"pykmm: {message}", err=True)
    return typer.Exit(EXIT_BAD_INPUT)


def _os_error(error: OSError) -> str:
    where = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}"


def _clear_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Turns what a user or a plugin can cause into a few lines and exit status 2."""
    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        from pykmm.errors import InvariantViolation, PykmmError

        try:
            return command(*args, **kwargs)
        except (InvariantViolation, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("pykmm: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except PykmmError as error:
            raise _fail(str(error)) from None
        except (Exception, SystemExit) as error:
            if (text := _blame(error)) is not None:
                raise _fail(text) from None
            if isinstance(error, ValueError):
                raise _fail(str(error)) from None
            if isinstance(error, OSError):
                raise _fail(_os_error(error)) from None
            if isinstance(error, MemoryError):
                text = f"out of memory: {error}" if str(error) else "out of memory"
                advice = "; --memory sets the simulated memory"
                raise _fail(text + (advice if "simulated memory" in text and "--memory" not in text else "")) from None
            raise
    return wrapper


def _blame(error: BaseException) -> str | None:
    """What a plugin's code raised, with its own lines only; None: no plugin has to do with it."""
    import traceback

    from pykmm.blame import plugin_frames

    notes = list(getattr(error, "__notes__", ()))
    frames = plugin_frames(error)
    if not frames and not notes:
        return None
    what = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return "\n".join([f"a plugin failed: {what[0]}", *what[1:], *"".join(traceback.format_list(frames)).splitlines()])


def _names(given: list[str] | None, default: str = "") -> list[str]:
    from pykmm.plugin import split_names

    return split_names(default if given is None else ",".join(given))


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, highlight=False, width=WIDE)      # a file has no edge
    return console


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says what is being done, on a terminal only."""
    from rich.text import Text

    console = _console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(Text(text))    # brackets are options, not markup


def example_path() -> Path:
    """The recording that pykmm ships."""
    from importlib.resources import files

    return Path(str(files("pykmm.data").joinpath(EXAMPLE)))


def _load(path: Path) -> Tape:
    from pykmm.tape import Tape

    return Tape.load(path)


def tape_title(name: str, tape: Tape) -> str:
    """What a recording holds, in a line."""
    summary = tape.summary()
    faults = ", ".join(f"{count:,} {kind}" for kind, count in tape.notes.faults.items()) or "none"

    def some(count: int, what: str) -> str:
        return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

    return (f"{name}: {some(summary['operations'], 'operation')}, {some(summary['threads'], 'thread')}, "
            f"{some(summary['address_spaces'], 'address space')}; recorded faults: {faults}")


def _print_comparison(console: Console, path: Path, comparison: Comparison, repeat: int) -> None:
    from pykmm.report import comparison_table

    def say(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    tape = comparison.tape
    say(tape_title(path.name, tape))
    console.print(comparison_table(comparison))
    if repeat > 1:
        say(f"time: the fastest of {repeat} runs; ratio: the median of {repeat} ratios, run by run")
    print_replay(say, tape, comparison.rows)


def print_replay(say: Callable[[str], None], tape: Tape, rows: Sequence[Row]) -> None:
    """Notes, results that differ, and the maps at the end. `rows` are those of the tape."""
    from pykmm.report import note_lines

    for line in note_lines(tape.notes):
        say(f"note: {line}")
    done = [(row, row.result) for row in rows if row.result is not None]
    arches = {row.arch for row, _ in done if row.engine != "host"}

    def who(row: Row) -> str:
        return f"{row.strategy} on {row.engine}{f' ({row.arch})' if len(arches) > 1 and row.engine != 'host' else ''}"

    for row, result in done:
        if result.mismatch_count:
            say(f"results: {result.mismatch_count:,} of {len(result.tape):,} differ under {who(row)}, first:")
            for text in result.mismatches[:3]:
                say(f"  {text}")
    if tape.work is not None:
        return
    if not tape.end_maps:
        say("maps: no end maps recorded, nothing to compare with")
        return
    mappings = sum(line.name != "[vsyscall]" for lines in tape.end_maps.values() for line in lines)
    for row, result in done:
        diff = result.maps_diff()
        if diff:
            say(f"maps: {who(row)} DIFFERS from the recorded end maps:")
            for text in diff:
                say(f"  {text}")
        else:
            say(f"maps: {who(row)} ended with the {mappings} recorded mappings")


def check_writable(*targets: str | os.PathLike[str] | None) -> None:
    """OSError before anything runs where a file could not be written afterwards. "-" is standard output."""
    import errno

    for target in targets:
        if target is None or target == "-":
            continue
        path = Path(target)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(target))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(target))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))


def _write_json(target: str, values: Any) -> None:
    import json

    text = json.dumps(values, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


@app.command()
@_clear_errors
def replay(
    traces: Traces = None,
    strategy: StrategyOption = None,
    engine: EngineOption = None,
    arch: ArchOption = None,
    memory: MemoryOption = None,
    repeat: RepeatOption = 5,
    json: JsonOption = None,
    example: Annotated[bool, typer.Option(
        "--example", help="Replay the shipped recording (also without a TRACE).")] = False,
) -> None:
    """Replay recordings and compare strategies and engines; check the final maps.

    Prints one table per recording: time, ratio to the first row, faults beside the recording's own, and the fault
    counters. Where NAME.end-maps.txt lies beside NAME.perf-trace.txt.xz, the replay must end with these maps; a
    difference is shown as a diff and is exit status 1.

    \b
    Examples:
      pykmm replay --example
      pykmm replay recording.perf-trace.txt.xz --strategy mmap_sem,spf --engine native,host
    """
    from pykmm.comparison import compare as run_comparison
    from pykmm.machine import check_names, parse_size

    paths = list(traces or [])
    if example or not paths:
        paths.append(example_path())
    strategies = check_names("strategy", _names(strategy, "mmap_sem,spf"))
    engines = check_names("engine", _names(engine, "native"))
    arches = check_names("arch", _names(arch, "x86"))
    if memory is not None:
        parse_size(memory)
    check_writable(json)
    console = _console()
    found, ok = [], True
    for path in paths:
        with _progress() as progress:
            progress(f"reading {path.name}")
            tape = _load(path)
            comparison = run_comparison(
                tape, strategies, engines, arches, memory=memory, repeats=repeat,
                progress=lambda text, path=path, progress=progress: progress(f"{path.name}: {text}"))  # type: ignore[misc]
        ok = ok and comparison.maps_ok
        if json is None or json != "-":
            _print_comparison(console, path, comparison, repeat)
            if path is not paths[-1]:
                console.print()
        if json is not None:
            found.append(comparison.to_dict())
    if json is not None:
        _write_json(json, found)
    if not ok:
        raise typer.Exit(EXIT_MAPS_DIFFER)


@app.command()
@_clear_errors
def maps(
    trace: Trace,
    which: Annotated[str, typer.Option(
        "--which", "-w", help="start, end: as recorded; final: as a replay ends.")] = "final",
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="Fault strategy of the replay.")] = "spf",
    arch: Annotated[str, typer.Option("--arch", help="Arch backend of the replay.")] = "x86",
) -> None:
    """Print the mappings of the main process, as /proc/PID/maps does.

    \b
    Example:
      pykmm maps recording.perf-trace.txt.xz --which final
    """
    from pykmm.machine import Machine, memory_needed
    from pykmm.report import format_maps

    if which not in ("start", "end", "final"):
        raise ValueError(f"unknown maps {which!r}; known: start, end, final")
    tape = _load(trace)
    if which == "final":
        memory = memory_needed(tape, arch)
        with Machine(arch=arch, strategy=strategy, cpus=tape.program().nstreams, memory=memory) as machine:
            lines = machine.run(tape).maps.get(tape.main_mm, [])
    else:
        recorded = tape.start_maps if which == "start" else tape.end_maps
        if tape.main_mm not in recorded:
            raise ValueError(f"{trace}: no {which} maps recorded (NAME.{which}-maps.txt beside the recording)")
        lines = recorded[tape.main_mm]
    typer.echo(format_maps(lines), nl=False)


@app.command("list")
@_clear_errors
def list_(
    kinds: Annotated[list[str] | None, typer.Argument(
        metavar="KIND...",
        help="strategies, arches, importers, workloads, scenarios, engines, suites; all if not given.")] = None,
    json: Annotated[str | None, typer.Option(
        "--json", metavar="FILE", help="Write the list as JSON; - writes it to standard output, instead of the text.")]
    = None,
) -> None:
    """List strategies with their options, arch backends, engines, importers, workloads and scenarios.

    Each with one line of what it is and, in brackets, where it comes from: built in, or the package that brought it.

    \b
    Examples:
      pykmm list
      pykmm list strategies workloads
      pykmm list --json -
    """
    from pykmm.plugin import inventory

    found = inventory()
    named = {"arches" if title == "arch_backends" else title: title for title in found}
    for kind in kinds or ():
        if kind not in named:
            raise ValueError(f"nothing is called {kind!r}; known: {', '.join(named)}")
    if kinds:
        found = {named[kind]: found[named[kind]] for kind in dict.fromkeys(kinds)}
    if json is not None:
        _write_json(json, found)
    if json == "-":
        return
    for title, rows in found.items():
        typer.echo(f"{title.replace('_', ' ')}:")
        width = max([14, *(len(row["name"]) for row in rows)])
        for row in rows:
            typer.echo(f"  {row['name']:<{width}} {row['description']}  [{row['source']}]")
            for option, values in row["options"].items():
                if values:
                    typer.echo(f"  {'':<{width}}   {option}={'|'.join(values)}")
            if row.get("parameters"):
                free = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
                typer.echo(f"  {'':<{width}}   {free}")
        if not rows:
            typer.echo("  none")


def _version(wanted: bool) -> None:
    if wanted:
        from pykmm import __version__

        typer.echo(f"pykmm {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    pass


app.command("compare")(_clear_errors(compare))
app.command("check")(_clear_errors(check))
app.command("conformance")(_clear_errors(conformance))


def main() -> None:
    """The ``pykmm`` command."""
    try:
        app()
    except BrokenPipeError:
        # The reader of standard output went away: as other filters, stop without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
