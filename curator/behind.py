"""A store's objects behind a URL, and their copies on this machine: what was fetched or put once is not fetched again.

An object that never changes is served from its copy. One that may (an `.open` one, a record of an input) is asked after
each time, and its copy stands under what the service says of its content. There is no lock out there.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from curator import remote
from curator.cache import cache_folder
from curator.commit import TEMPORARY, explained


class Behind:
    """What lies behind a store's folder on this machine. Names are paths below the store, with slashes."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.root = cache_folder() / "stores" / hashlib.sha256(self.url.encode()).hexdigest()[:32]
        self._there: dict[str, set[str]] = {}

    def brought(self, name: str, fixed: bool) -> Path | None:
        """The copy of an object, fetched if need be; None where there is none. `fixed`: it never changes."""
        if fixed:
            return self._fetched(name, self.root / name)
        try:
            entry = remote.stat(self.at(name))
        except FileNotFoundError:
            return None
        copy = self.root / f"{name}~{hashlib.sha256(entry.stamp.encode()).hexdigest()[:16]}"
        if not copy.exists():
            for old in copy.parent.glob(f"{copy.name.rpartition('~')[0]}~*"):
                old.unlink(missing_ok=True)
        return self._fetched(name, copy)

    def _fetched(self, name: str, copy: Path) -> Path | None:
        if copy.exists():
            return copy
        temporary = copy.with_name(f"{TEMPORARY}{copy.name[:80]}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            remote.get(self.at(name), temporary)
            os.rename(temporary, copy)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explained(error, copy) from error
        finally:
            temporary.unlink(missing_ok=True)
        return copy

    def check_copy(self, name: str) -> None:
        """Let go of the copy of an object that never changes, where that has gone."""
        if (self.root / name).exists() and not remote.exists(self.at(name)):
            (self.root / name).unlink(missing_ok=True)

    def put(self, name: str, fixed: bool) -> None:
        """Send the copy out; one of an object that may change goes, since nobody knows yet what it is called there."""
        copy = self.root / name
        remote.put(self.at(name), copy)
        if not fixed:
            copy.unlink(missing_ok=True)
        self._there.get(name.partition("/")[0], set()).add(name)

    def has(self, name: str) -> bool:
        """Whether an object is there; its whole folder is listed at the first question, and its own puts added."""
        folder = name.partition("/")[0]
        if folder not in self._there:
            own = len(self.url) + 1
            self._there[folder] = {entry.url[own:] for entry in remote.entries(self.at(folder))}
        return name in self._there[folder]

    def look_again(self) -> None:
        """Others have put objects since: forget what was listed."""
        self._there.clear()

    def shelf(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder, as it is now."""
        return remote.children(self.at(folder))

    def delete(self, name: str) -> None:
        """An object and its copies go."""
        remote.delete([self.at(name)])
        for copy in (self.root / name).parent.glob(f"{(self.root / name).name}*"):
            copy.unlink(missing_ok=True)
        self._there.get(name.partition("/")[0], set()).discard(name)

    def set_aside(self, name: str, place: Path) -> None:
        """A damaged object, whose copy lies at `place` by now, is taken there out there as well."""
        remote.put(self.at(f"damaged/{place.name}"), place)
        self.delete(name)

    def format(self, version: str) -> str | None:
        """The version of the layout out there, `version` where nothing lies yet; None where it is something else.

        Raises RemoteError where nothing can be put there.
        """
        remote.try_writing(self.url)
        with suppress(FileNotFoundError):
            return remote.read(self.at("FORMAT")).decode().strip()
        if any(not name.startswith(".") for name in remote.children(self.url)):
            return None
        remote.put(self.at("FORMAT"), f"{version}\n".encode())
        return version

    def at(self, name: str) -> str:
        """The URL of an object."""
        return remote.joined(self.url, name)
