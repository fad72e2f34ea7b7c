"""Fetching a weights file: with progress, resumed where it broke off, and checked before it gets its name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from filelock import FileLock

from curator.commit import explained, sync_folder
from curator.errors import WeightsError
from curator.models.published import File
from curator.models.weights import digest
from curator.progress import Progress

TRIES = 4
BACK_OFF_S = 0.5
SPEAK_EVERY_S = 5.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(file: File, folder: Path, advice: str = "") -> Path:
    """The file in `folder`, downloaded unless it lies there whole. Raises WeightsError with what to do by hand.

    `$CURATOR_WEIGHTS_URL` names a mirror that has all files under their own names. Two processes that want the
    same file download it once.
    """
    target = folder / file.name
    with _explained(target):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{file.name}.lock"):
            if not (target.is_file() and digest(target) == file.sha256):
                _fetch(file, _url(file), target, advice)
    return target


def _url(file: File) -> str:
    mirror = os.environ.get("CURATOR_WEIGHTS_URL")
    return f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """What the disk refuses is told as everywhere: where, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise WeightsError(str(explained(error, target))) from error


def _fetch(file: File, url: str, target: Path, advice: str) -> None:
    """Download to a `.part` file, check it, and give it its name."""
    partial = target.with_name(f"{file.name}.part")
    for attempt in range(TRIES):
        begun = partial.exists()
        try:
            _download(url, partial, file.name, advice)
        except (httpx.TransportError, _Again) as error:
            if attempt == TRIES - 1:
                raise WeightsError(_told(f"{url} could not be fetched: {_plain(error)}.", advice)) from error
            time.sleep(BACK_OFF_S * 2**attempt)
            continue
        size, found = partial.stat().st_size, digest(partial)
        if found == file.sha256:
            partial.replace(target)
            sync_folder(target.parent)
            return
        partial.unlink()
        if not begun:  # what was begun by another run may be of another file: that is worth one more try
            wrong = f"{url} gave {size:,} bytes with SHA-256 {found}, but {file.sha256} is expected"
            raise WeightsError(_told(f"{wrong}: they were thrown away.", advice))
    raise WeightsError(_told(f"{url} could not be fetched in {TRIES} tries.", advice))


class _Again(Exception):
    """The server may do better in a moment."""


def _told(what: str, advice: str) -> str:
    """What went wrong and what to do by hand, which may take lines of its own."""
    return f"{what}{chr(10) if chr(10) in advice else ' '}{advice}".rstrip()


def _plain(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _download(url: str, partial: Path, name: str, advice: str) -> None:
    """Append to what is there already. Raises _Again or httpx.TransportError where another try may help."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=httpx.Timeout(30)) as answer:
        if answer.status_code == 416:  # nothing behind what is here
            return
        if answer.status_code in RETRIED:
            raise _Again(f"the server answered {answer.status_code}")
        if answer.status_code >= 400:
            raise WeightsError(_told(f"{url} could not be fetched: the server answered {answer.status_code}.", advice))
        have = have if answer.status_code == 206 else 0
        expected = int(answer.headers.get("Content-Length", 0)) + have
        got = _store(answer, partial, name, have, expected)
        if got < expected:
            raise _Again(f"the connection ended at byte {got:,} of {expected:,}")


def _store(answer: httpx.Response, partial: Path, name: str, have: int, expected: int) -> int:
    """Write the body behind the first `have` bytes, saying now and then how far it is; gives the size of the file."""
    behind = f", from byte {have:,} on" if have else ""
    Progress.say(f"fetching {name} ({expected / 1e6:,.1f} MB){behind}")
    spoken = time.monotonic()
    with open(partial, "ab" if have else "wb") as file:
        for block in answer.iter_raw():  # of any size: what is gathered to a fixed one is lost when the line breaks
            file.write(block)
            if time.monotonic() - spoken > SPEAK_EVERY_S:
                spoken = time.monotonic()
                Progress.say(f"fetching {name}: {file.tell() / 1e6:,.1f} of {expected / 1e6:,.1f} MB")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
