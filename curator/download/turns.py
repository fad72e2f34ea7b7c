"""Whose turn it is: URLs wait by host, hosts take turns, and none gets more at once or in a second than it may.

So a list that begins with a million URLs of one slow host does not keep the others waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import httpx

from curator.download.fetch import Trouble
from curator.download.settings import DownloadSettings


@dataclass
class Errand:
    """One URL on its way."""

    url: str
    target: httpx.URL
    start: httpx.URL  # where a new try begins
    before: int = 0  # requests in earlier runs
    tries: int = 0
    spent_s: float = 0.0
    passed: list[httpx.URL] = field(default_factory=list)  # redirects of this try


@dataclass
class Host:
    """The URLs that wait for one host, and how it does."""

    name: str
    waiting: deque[Errand] = field(default_factory=deque)
    running: int = 0
    listed: bool = False
    not_before: float = 0.0
    silent: int = 0  # URLs in a row of which it answered none
    hopeless: Trouble | None = None  # why nobody asks it any more in this run


class Turns:
    """Hands out errands, hosts in turn."""

    def __init__(self, settings: DownloadSettings) -> None:
        self.settings = settings
        self.waiting = 0
        self._hosts: dict[str, Host] = {}
        self._ring: asyncio.Queue[Host] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, errand: Errand, front: bool = False) -> None:
        """Have an errand wait for its host; `front`: before the others, since it was begun."""
        host = self.host(errand.target)
        self.waiting += 1
        (host.waiting.appendleft if front else host.waiting.append)(errand)
        self._offer(host)

    def put_later(self, errand: Errand, wait_s: float) -> None:
        """The same, after a while."""
        self._loop.call_later(wait_s, self.put, errand, True)

    def host(self, target: httpx.URL) -> Host:
        """The host of a URL."""
        return self._hosts.setdefault(target.host, Host(target.host))

    async def take(self) -> tuple[Errand, Host]:
        """The next errand, once there is one."""
        while True:
            host = await self._ring.get()
            host.listed = False
            if host.hopeless or host.not_before <= self._loop.time():
                break
            self._offer(host)  # it was told to be left alone meanwhile
        host.running += 1
        host.not_before = max(host.not_before, self._loop.time() + 1 / self.settings.per_host_per_s)
        errand = host.waiting.popleft()
        self.waiting -= 1
        self._offer(host)
        return errand, host

    def done(self, host: Host) -> None:
        """An errand at this host is through, or goes on elsewhere."""
        host.running -= 1
        self._offer(host)
        if not (host.running or host.waiting or host.hopeless or host.silent or host.not_before > self._loop.time()):
            self._hosts.pop(host.name, None)

    def pause(self, host: Host, wait_s: float) -> None:
        """Leave a host alone for a while."""
        host.not_before = max(host.not_before, self._loop.time() + wait_s)

    def _offer(self, host: Host) -> None:
        if host.listed or not host.waiting or (host.running >= self.settings.per_host and not host.hopeless):
            return
        host.listed = True
        wait = 0 if host.hopeless else host.not_before - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._due, host)
        else:
            self._ring.put_nowait(host)

    def _due(self, host: Host) -> None:
        host.listed = False
        self._offer(host)
