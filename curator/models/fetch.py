"""Fetching a weights file: with progress, resumed where it broke off, and checked before it gets its name."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import httpx

from curator.commit import sync_folder
from curator.errors import WeightsError
from curator.models.weights import File
from curator.progress import Progress

TRIES = 4
BLOCK = 1 << 20
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(file: File, folder: Path, advice: str = "") -> Path:
    """The file in `folder`, downloaded unless it lies there already. Raises WeightsError with what to do by hand.

    `$CURATOR_WEIGHTS_URL` names a mirror that has all files under their own names.
    """
    target = folder / file.name
    if target.is_file() and _digest(target) == file.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    mirror = os.environ.get("CURATOR_WEIGHTS_URL")
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    partial = folder / f"{file.name}.part"
    for attempt in range(TRIES):
        try:
            _download(url, partial, file.name)
            break
        except (httpx.TransportError, _Again) as error:
            if attempt == TRIES - 1:
                raise WeightsError(f"{url} could not be fetched: {_plain(error)}. {advice}".rstrip()) from error
            time.sleep(0.5 * 2**attempt)
    return _accepted(file, url, partial, target)


class _Again(Exception):
    """The server may do better in a moment."""


def _plain(error: Exception) -> str:
    return str(error) or type(error).__name__


def _download(url: str, partial: Path, name: str) -> None:
    """Append to what is there already."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=httpx.Timeout(30)) as answer:
        if answer.status_code == 416:  # all of it is here
            return
        if answer.status_code in RETRIED:
            raise _Again(f"the server answered {answer.status_code}")
        if answer.status_code >= 400:
            raise WeightsError(f"{url} could not be fetched: the server answered {answer.status_code}.")
        resumed = answer.status_code == 206
        expected = int(answer.headers.get("Content-Length", 0)) + (have if resumed else 0)
        got = have if resumed else 0
        Progress.say(f"fetching {name} ({expected / 1e6:,.1f} MB){f', from byte {have:,} on' if resumed else ''}")
        spoken = time.monotonic()
        with open(partial, "ab" if resumed else "wb") as file:
            for block in answer.iter_raw(BLOCK):
                file.write(block)
                got += len(block)
                if time.monotonic() - spoken > 5:
                    spoken = time.monotonic()
                    Progress.say(f"fetching {name}: {got / 1e6:,.1f} of {expected / 1e6:,.1f} MB")
            file.flush()
            os.fsync(file.fileno())
        if expected and got < expected:
            raise _Again(f"the connection ended at byte {got:,} of {expected:,}")


def _accepted(file: File, url: str, partial: Path, target: Path) -> Path:
    found = _digest(partial)
    if found != file.sha256:
        size = partial.stat().st_size
        partial.unlink()
        raise WeightsError(
            f"{url} gave {size:,} bytes with SHA-256 {found}, expected {file.sha256}. They were thrown away. "
            "Try again, or put the right file there by hand."
        )
    partial.rename(target)
    sync_folder(target.parent)
    return target


def _digest(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
