"""A real HTTP server on the loopback interface that says, byte by byte, what it is told to say; and a small internet.

An answer is a run of bytes to send and seconds to wait, so that a server can be slow, endless, short or wrong.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpcore

from curator.download import client

Part = bytes | float
Answer = Iterable[Part]


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    target: str
    headers: dict[str, str]
    tls_name: str | None


@dataclass
class Site:
    """What a server answers, by target, and what it was asked. A target without an answer is a 404."""

    answers: dict[str, Answer | Callable[[int], Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    connections: int = 0
    under_way: int = 0
    most_under_way: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def targets(self) -> list[str]:
        """What was asked for, in order."""
        return [asked.target for asked in self.asked]

    def answer(self, target: str) -> Answer:
        """The answer to the request that was just noted; a callable is given how many came before for the same."""
        found = self.answers.get(target, reply(404, b"nothing here", "text/plain"))
        return found(self.targets().count(target) - 1) if callable(found) else found


def reply(status: int = 200, body: bytes = b"", kind: str | None = "image/jpeg", **headers: str) -> list[Part]:
    """A whole answer; `Retry_After="1"` becomes a header."""
    lines = [f"HTTP/1.1 {status} So"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + body]


def moved(location: str, status: int = 302) -> list[Part]:
    """A redirect."""
    return reply(status, b"", None, Location=location)


async def _converse(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    site.connections += 1
    tls = writer.get_extra_info("ssl_object")
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            name = getattr(tls, "asked_for", None)
            site.asked.append(Asked(head[0].split(" ")[1], headers, name))
            site.under_way += 1
            site.most_under_way = max(site.most_under_way, site.under_way)
            last = b""
            try:
                for part in site.answer(site.asked[-1].target):
                    if isinstance(part, bytes):
                        writer.write(part)
                        await writer.drain()
                        last = part
                    else:
                        await asyncio.sleep(part)
            finally:
                site.under_way -= 1
            if last == CLOSE:
                break
    writer.close()


CLOSE = b""
"""As the last part: the server hangs up."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None, site: Site | None = None) -> Iterator[Site]:
    """A site on a port of its own, served by a thread."""
    site = site or Site()
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(lambda r, w: _converse(site, r, w), "127.0.0.1", 0, ssl=tls, backlog=500)

    server = loop.run_until_complete(begin())
    site.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:

        async def end() -> None:
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@dataclass
class Internet:
    """Names with the addresses that they resolve to, one answer after the other; whoever dials gets the site."""

    site: Site
    names: dict[str, list[list[str]]]
    looked_up: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The next answer for a name; what has none is left to the system, which knows numbers of every spelling."""
        self.looked_up.append(host)
        answers = self.names.get(host)
        if answers is None:
            return await client.resolve(host, port)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def dial(self, address: str, port: int, timeout: float | None) -> httpcore.AsyncNetworkStream:
        """Note which address is dialled; the site answers for all of them."""
        self.dialled.append(address)
        return await client.dial("127.0.0.1", self.site.port, timeout)
