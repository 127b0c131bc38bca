"""What a run shows on the terminal: the phase it is in, how far, how fast; and one line per iteration.

On a terminal this is a live bar (rich); elsewhere plain lines, one every ten seconds of whatever takes that long, so that a
log file stays readable and is never silent. It knows nothing of training: it is told names, counts and texts.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

_INTERVAL_S = 10.0
"""Between two plain lines about one phase."""

PhaseUpdate = Callable[[int, str], None]
"""Called with how much is done and a short status text; an empty one shows how fast it goes."""


class Display:
    """Progress of one run.

    Args:
        mode: "rich" draws a live bar, "plain" prints lines, "none" prints nothing; "auto" is rich on a terminal.
    """

    def __init__(self, mode: Literal["auto", "rich", "plain", "none"]) -> None:
        if mode == "auto":
            mode = "rich" if sys.stdout.isatty() else "plain"
        self._mode = mode
        self._console = Console(
            file=sys.stdout,  # as it is now: a simulator that is being compiled may silence it for a while
            quiet=mode == "none",
            highlight=False,
            soft_wrap=mode != "rich",
            force_terminal=True if mode == "rich" else None,
        )

    def line(self, text: str) -> None:
        """Print one line (rich markup allowed) above the live bar."""
        self._console.print(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table of plain texts; the first column is left-aligned, numbers to the right."""
        table = Table(title=escape(title), title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._console.print(table)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is going on while the block runs, where that takes long: `what` is a phrase such as "setting up"."""
        if self._mode == "rich":
            columns = (SpinnerColumn(), TextColumn("[bold]{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True, redirect_stdout=False) as progress:
                progress.add_task(escape(what), total=None)
                yield
        else:
            with self._heartbeat(lambda: what):
                yield

    @contextmanager
    def phase(self, name: str, *, total: int, unit: str) -> Iterator[PhaseUpdate]:
        """Show a phase of known length while the block runs.

        Args:
            name: What is happening ("rollout", "update", "evaluation").
            total: How many units make the phase complete.
            unit: What is counted ("groups", "rows", "episodes").
        """
        with self._live(name, total, unit) if self._mode == "rich" else self._plain(name, total, unit) as update:
            yield update

    @contextmanager
    def _live(self, name: str, total: int, unit: str) -> Iterator[PhaseUpdate]:
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<11}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
        )
        with Progress(*columns, console=self._console, transient=True, redirect_stdout=False) as progress:
            task = progress.add_task(name, total=total, status="")
            speed = _Speed(unit)

            def update(completed: int, status: str) -> None:
                progress.update(task, completed=completed, status=status or speed.text(completed))

            yield update

    @contextmanager
    def _plain(self, name: str, total: int, unit: str) -> Iterator[PhaseUpdate]:
        speed = _Speed(unit)
        newest = f"{name}: 0/{total} {unit}"

        def update(completed: int, status: str) -> None:
            nonlocal newest
            newest = f"{name}: {completed}/{total} {unit}  {status or speed.text(completed)}".rstrip()

        with self._heartbeat(lambda: newest):
            yield update

    @contextmanager
    def _heartbeat(self, what: Callable[[], str]) -> Iterator[None]:
        """Print what is going on, and for how long, again and again while the block runs."""
        if self._mode == "none":
            yield
            return
        began = time.monotonic()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_INTERVAL_S):
                self._console.print(f"  {what()}  ({time.monotonic() - began:.0f} s so far)", markup=False)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Speed:
    """How fast a phase goes since it was first heard of: what was done before, and its setting up, do not count."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[int, float] | None = None

    def text(self, completed: int) -> str:
        """Units per second, or per minute if they are slow; empty before there are two readings."""
        now = time.monotonic()
        if self._first is None:
            self._first = completed, now
        before, began = self._first
        if completed <= before or now <= began:
            return ""
        per_second = (completed - before) / (now - began)
        return f"{per_second:.1f} {self._unit}/s" if per_second >= 1 else f"{60 * per_second:.1f} {self._unit}/min"
