"""What a run says to a person: lines as it goes, a bar while it measures, tables at its end; and the log of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from curator.commit import commit_bytes
from curator.progress import Progress, folded


class Voice:
    """Speaks while a run works. `quiet` says nothing on the terminal, `brief` shows no tables; both log it all."""

    def __init__(self, quiet: bool = False, brief: bool = False) -> None:
        self.quiet, self.brief = quiet, brief
        self.lines: list[str] = []
        self._progress: Progress | None = None

    def say(self, line: str) -> None:
        """One line, now; a bar that is up stays up."""
        self.log(line)
        if self.quiet:
            return
        if self._progress is not None:
            self._progress.note(line)
        else:
            Progress.say(line)

    def log(self, text: str) -> None:
        """Into the log alone."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self.lines += [f"{now} {line}".rstrip() for line in text.splitlines()]

    def begin(
        self, total: int, label: str = "measuring", *, counted: bool = True
    ) -> Callable[[dict[str, int]], None]:
        """Show how `total` images are measured, or fetched; what it returns takes counts of `done` and `failed`.

        Not `counted`: how large a share of a step's work is done.
        """
        if not self.quiet and total:
            self._progress = Progress(total, label, counted)
            self._progress.__enter__()
        return self.heard

    def heard(self, counts: dict[str, int]) -> None:
        """What is under way is further by so much; nothing where nothing is."""
        if self._progress is not None:
            self._progress.update(**{k: v for k, v in counts.items() if k in ("done", "failed")})

    def end(self) -> None:
        """The bar goes, its last line stays."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def show(self, text: str) -> None:
        """What came of it, as text of several lines, to stdout."""
        if not self.quiet and not self.brief:
            print(folded(text), flush=True)

    def save(self, folder: Path, hydra: Mapping[str, str] | None) -> None:
        """Put the log, and the config as it was composed, into the output that is being made."""
        commit_bytes(folder / "curator.log", "".join(f"{line}\n" for line in self.lines).encode())
        if hydra:
            (folder / ".hydra").mkdir(exist_ok=True)
            for name, text in hydra.items():
                commit_bytes(folder / ".hydra" / name, text.encode())
