"""The output folder and how it is replaced: all is made in `.next`, and its `run.json`, written last, is the commit.

    output/.next     being made; without a run.json it is a killed run's and goes, with one it is rolled forward
    output/.old      what was replaced, until the swap is done
    output/run.json  what lies here is whole

Whenever a run is killed, the next command finds the old output whole or finishes the new one. An output on a URL is
made on this machine and copied up (`uploaded.py`). Knows no format.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curator.commit import commit_bytes, explained, sync_folder
from curator.errors import OutsideError

RUN = "run.json"
PAGE = "search.html"
"""What curate-search leaves beside a run: it shows that run's images, and goes when another takes its place."""
PAGE_MARK = b'<meta name="generator" content="curate-search">'


class Output:
    """One output folder; `locked` before anything else."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.place: Path | str = self.folder  # where the result is found
        self.next = self.folder / ".next"
        self.old = self.folder / ".old"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone, roll a committed `.next` forward and drop an uncommitted one.

        A folder that was made for this run and stays empty goes again.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise explained(error, self.folder) from error
        with _closing(descriptor):
            self._lock(descriptor)
            self.recover()
            try:
                yield
            finally:
                self._leave()

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutsideError(
                f"{self.folder}: another run is writing here. Wait for it, or name another output."
            ) from error

    def _leave(self) -> None:
        if not (self.next / RUN).exists():
            shutil.rmtree(self.next, ignore_errors=True)
        with suppress(OSError):  # it holds something, as it should
            self.folder.rmdir()

    @property
    def run(self) -> dict[str, Any] | None:
        """The `run.json` of a finished run, None where there is none."""
        with suppress(OSError, ValueError):
            loaded = json.loads((self.folder / RUN).read_text())
            return loaded if isinstance(loaded, dict) else None
        return None

    @property
    def is_whole(self) -> bool:
        """Whether every file of the finished run is there, with the size that it was written with."""
        run = self.run or {}
        parts = run.get("parts", [])
        return bool(parts) and run.get("files") == self._listing(parts)

    def _listing(self, parts: Sequence[str]) -> str:
        return listing(sizes(self.folder, parts))

    @property
    def is_foreign(self) -> bool:
        """Whether the folder holds something that no run of Curator left there."""
        if not self.folder.is_dir():
            return self.folder.exists()
        names = set(os.listdir(self.folder))
        return bool(names) and not names & {RUN, ".next", ".old"}

    def holds(self, part: str) -> bool:
        """Whether a part of this name is there, whoever made it."""
        return (self.folder / part).exists()

    def part(self, name: str) -> Path:
        """Where a part of the finished run can be read."""
        return self.folder / name

    def begin(self) -> Path:
        """An empty `.next` to make everything in."""
        shutil.rmtree(self.next, ignore_errors=True)
        try:
            self.next.mkdir()
        except OSError as error:
            raise explained(error, self.next) from error
        return self.next

    def commit(self, run: dict[str, Any]) -> None:
        """Write `run.json` into `.next` and put everything in place of what was there."""
        before = self.run or {}
        parts = sorted(name for name in os.listdir(self.next) if name != RUN)
        replaced = [*before.get("parts", []), *[PAGE] * (PAGE not in parts and is_page(self.folder / PAGE))]
        run = {**run, "parts": parts, "replaces": replaced, "files": listing(sizes(self.next, parts))}
        sync_folder(self.next)
        commit_bytes(self.next / RUN, _json(run))
        self._replace()

    def _replace(self) -> None:
        self.recover()

    def recover(self) -> None:
        """Finish a swap that was committed, drop a run that was not. May be killed and run again anywhere."""
        try:
            if (self.next / RUN).exists():
                self._swap(json.loads((self.next / RUN).read_text()))
            shutil.rmtree(self.next, ignore_errors=True)
            shutil.rmtree(self.old, ignore_errors=True)
        except OSError as error:
            raise explained(error, self.folder) from error

    def _swap(self, run: dict[str, Any]) -> None:
        (self.folder / RUN).unlink(missing_ok=True)
        sync_folder(self.folder)
        parts: Sequence[str] = run["parts"]
        self.old.mkdir(exist_ok=True)
        for name in dict.fromkeys([*run["replaces"], *parts]):
            # a part that is gone from .next was moved out before a kill: what stands outside is already the new one
            waiting = name not in parts or (self.next / name).exists()
            if waiting and (self.folder / name).exists():
                os.rename(self.folder / name, self.old / name)
        for name in parts:
            if (self.next / name).exists():
                os.rename(self.next / name, self.folder / name)
        sync_folder(self.folder)
        os.rename(self.next / RUN, self.folder / RUN)
        sync_folder(self.folder)


def is_page(path: Path) -> bool:
    """Whether a file is a page of curate-search, by the mark in its head: only such are replaced."""
    try:
        with open(path, "rb") as file:
            return PAGE_MARK in file.read(512)
    except OSError:
        return False


def sizes(folder: Path, parts: Sequence[str]) -> dict[str, int]:
    """Names and sizes of all files of some parts of a folder."""
    files = (path for part in parts for path in (folder / part, *(folder / part).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def listing(files: Mapping[str, int]) -> str:
    """SHA-256 over names and sizes."""
    lines = sorted(f"{name} {size}\n" for name, size in files.items())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _json(run: Mapping[str, Any]) -> bytes:
    """As a person reads it; bytes of a path that are no UTF-8 are escaped, so that they come back as they were."""
    text = json.dumps(run, indent=2, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda sign: f"\\u{ord(sign[0]):04x}", text).encode() + b"\n"


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
