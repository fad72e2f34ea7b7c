"""How work in progress is shown: a bar on a terminal, a plain line now and then elsewhere; and tables of text."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""

WIDEST = 100
"""Columns that a table takes at most, and where there is no terminal."""


class Progress:
    """How far along `total` images are: images/s, time to go, failures. To stderr, so that results can be piped.

    Not `counted`: `total` is of work that nobody counts, and shown is the share that is done; of that nothing stays.
    """

    def __init__(self, total: int, label: str, counted: bool = True) -> None:
        self.total, self.label, self.counted = total, label, counted
        self.done = self.failed = 0
        self.begin = self.spoken = time.monotonic()
        self.console = Console(stderr=True, highlight=False)
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
                MofNCompleteColumn() if self.counted else TaskProgressColumn(),
                TextColumn("{task.fields[rate]}", markup=False), TimeElapsedColumn(),
            )  # fmt: skip
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.counted:
            self.say(self._line())

    def update(self, done: int = 0, failed: int = 0) -> None:
        """So many more images are through; so many of them failed."""
        self.done += done
        self.failed += failed
        if self.bar is not None:
            self.bar.update(self.task, completed=min(self.done, self.total), rate=self._rate())
        elif time.monotonic() - self.spoken >= EVERY_S:
            self.spoken = time.monotonic()
            self.say(self._line())

    def note(self, line: str) -> None:
        """One line above the bar."""
        if self.bar is not None:
            self.bar.console.print(folded(line, sys.stderr), markup=False, emoji=False, soft_wrap=True)
        else:
            self.say(line)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self.begin, 1e-6)
        rate = self.done / seconds
        to_go = "" if self.done >= self.total or not rate else readable_seconds((self.total - self.done) / rate)
        speed = f"{rate:,.1f} images/s" if self.counted else ""
        failed = f"{self.failed:,} failed" if self.failed else ""
        return ", ".join(filter(None, (speed, f"{to_go} to go" if to_go else "", failed)))

    def _line(self) -> str:
        if not self.counted:
            return ", ".join(filter(None, (f"{self.label}: {min(self.done / self.total, 1):.0%} done", self._rate())))
        return f"{self.label}: {min(self.done, self.total):,} of {self.total:,} images, {self._rate()}"

    @staticmethod
    def say(line: str) -> None:
        """One line on stderr, when no bar is up."""
        print(folded(line, sys.stderr), file=sys.stderr, flush=True)


def terminal_width() -> int | None:
    """Columns of the terminal that stdout goes to (or that COLUMNS names); None for a file or a pipe."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return _columns(sys.stdout)


def _columns(stream: TextIO) -> int:
    """As COLUMNS says, or the terminal itself: only one of stdout and stderr may go to it."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDEST
    except OSError:
        return WIDEST


def folded(text: str, stream: TextIO | None = None) -> str:
    """A text whose lines fit the terminal, broken between words; as it is where there is none.

    For stdout, or for another stream: then only a terminal counts, whatever COLUMNS says.
    """
    width = terminal_width() if stream is None else _columns(stream) if stream.isatty() else None
    if width is None:
        return text
    lines = [
        textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else [line]
        for line in text.splitlines()
    ]
    return "\n".join(part for parts in lines for part in parts)


def readable_seconds(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right, no wider than the terminal or 100.

    Cells are shown as they are: a key may hold brackets or colons that rich would take for markup or a picture.
    """
    width = min(terminal_width() or WIDEST, WIDEST)
    longest = [max(len(w) for cell in (name, *(r[n] for r in rows)) for w in cell.split() or [""])
               for n, name in enumerate(columns)]  # fmt: skip
    apart = 2 if sum(longest) + 2 * len(columns) <= width + 2 else 1  # rather closer together than cut inside a word
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, apart, 0, 0))
    for number, name in enumerate(columns):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    text = io.StringIO()  # and no terminal: codes for bold letters would be counted as letters, and logged
    Console(file=text, force_terminal=False, width=width, markup=False, emoji=False, highlight=False).print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
