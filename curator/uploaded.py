"""An output on a URL: made on this machine, then copied up.

    URL/.old        what a run that is being replaced had, while that is under way
    URL/run.json    what lies here is whole: it goes first and comes last

A killed upload leaves no run.json, and the next command makes the output again from the store. There is no lock out
there: two machines that write to one URL at once are not told of each other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from curator import remote
from curator.cache import cache_folder
from curator.output import RUN, Output, listing, sizes

OLD = ".old"


class Uploaded(Output):
    """One output on a URL. `folder` is where it is made; nothing stays there."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        super().__init__(cache_folder() / "outputs" / hashlib.sha256(self.url.encode()).hexdigest()[:32])
        self.place = self.url

    @property
    def run(self) -> dict[str, Any] | None:
        """The `run.json` of a finished run, None where there is none."""
        with suppress(FileNotFoundError, ValueError):
            loaded = json.loads(remote.read(self._at(RUN)))
            return loaded if isinstance(loaded, dict) else None
        return None

    @property
    def is_foreign(self) -> bool:
        """Whether objects are there that no run of Curator left."""
        names = set(remote.children(self.url))
        return bool(names) and not names & {RUN, OLD}

    def holds(self, part: str) -> bool:
        """Whether a part of this name is there, whoever made it."""
        return part in remote.children(self.url)

    def part(self, name: str) -> Path:
        """A part of the finished run, brought to this machine."""
        files = {self._at(file): self._brought / file for file in self._files([name])}
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        remote.get_all(files.items())
        return self._brought / name

    @cached_property
    def _brought(self) -> Path:
        shutil.rmtree(self.old, ignore_errors=True)
        self.old.mkdir(parents=True)
        return self.old

    def begin(self) -> Path:
        """An empty `.next` to make everything in. RemoteError where nothing can be put at the URL."""
        remote.try_writing(self.url)
        return super().begin()

    def recover(self) -> None:
        """Drop what a killed run left on this machine."""
        shutil.rmtree(self.next, ignore_errors=True)
        shutil.rmtree(self.old, ignore_errors=True)

    def _leave(self) -> None:
        self.recover()
        super()._leave()

    def _replace(self) -> None:
        self._upload(json.loads((self.next / RUN).read_text()))
        self.recover()

    def _upload(self, run: dict[str, Any]) -> None:
        before = set(run["replaces"])
        with suppress(FileNotFoundError, ValueError):  # an upload was killed: what it replaced is still to go
            before |= set(json.loads(remote.read(self._at(OLD))))
        parts = {*before, *run["parts"]}
        remote.put(self._at(OLD), json.dumps(sorted(parts)).encode())
        remote.delete([self._at(RUN)])
        there = self._files(sorted(parts))
        new = sizes(self.next, run["parts"])
        remote.put_all((self.next / name, self._at(name)) for name in new)
        remote.delete(self._at(name) for name in there if name not in new)
        remote.put(self._at(RUN), self.next / RUN)
        remote.delete([self._at(OLD)])

    def _listing(self, parts: Sequence[str]) -> str:
        return listing(self._files(parts))

    def _files(self, parts: Sequence[str]) -> dict[str, int]:
        """Names and sizes of all files of some parts."""
        found = [entry for part in parts for entry in remote.entries(self._at(part), itself=True)]
        return {entry.url[len(self.url) + 1 :]: entry.size for entry in found}

    def _at(self, name: str) -> str:
        return remote.joined(self.url, name)


def output_at(place: Path | str) -> Output:
    """The output at a path or a URL."""
    return Uploaded(str(place)) if remote.is_url(place) else Output(place)
