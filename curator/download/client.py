"""The HTTP client: names are resolved once, the addresses checked, and those very addresses connected to.

So a name that resolves to something else a moment later (DNS rebinding) gains nothing; the TLS name and the Host
header stay the URL's. Nothing of the environment takes part but where certificates lie: no proxy, no netrc. The only
file that knows httpcore, the part of httpx that speaks HTTP; the rest of httpx costs time and follows redirects.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpcore
import httpx

from curator.download.public import refusal
from curator.download.settings import DownloadSettings
from curator.errors import Cause, Fault

CONNECT_S = 10.0
KEEP_ALIVE_S = 10.0
NAMES_KEPT_S = 60.0
NAMES_KEPT = 100_000
LOOKUPS = 32
"""Names looked up at once; each takes a thread."""
TRIED = 2
"""Addresses of one host that are tried before its last."""

Resolve = Callable[[str, int], Coroutine[None, None, list[str]]]
Dial = Callable[[str, int, float | None], Awaitable[httpcore.AsyncNetworkStream]]
Place = tuple[bytes, bytes, int]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system gives them. Raises Fault: unknown_host, connection_failed, bad_url."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
            raise Fault(Cause.UNKNOWN_HOST, f"There is no host named {host}.") from error
        raise Fault(Cause.CONNECTION_FAILED, f"{host} could not be looked up: {error.strerror}.") from error
    except UnicodeError as error:
        raise Fault(Cause.BAD_URL, f"{host} cannot be the name of a host.") from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


async def dial(address: str, port: int, timeout: float | None) -> httpcore.AsyncNetworkStream:
    """A connection to an address that was checked."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout)


class Client:
    """Connections to hosts, kept open while they are of use. `resolve` and `dial` are the ways to the network."""

    def __init__(self, settings: DownloadSettings, resolve: Resolve = resolve, dial: Dial = dial) -> None:
        self._tls = httpx.create_ssl_context()
        self._backend = _Checked(settings.allow_private_addresses, resolve, dial)
        self._most_idle = settings.concurrency
        self._idle: OrderedDict[Place, list[httpcore.AsyncHTTPConnection]] = OrderedDict()
        self._idle_count = 0

    async def __aenter__(self) -> Client:
        threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="resolve")
        asyncio.get_running_loop().set_default_executor(threads)
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle_count:
            await self._close_oldest()

    async def connection(self, target: httpx.URL, fresh: bool = False) -> tuple[httpcore.AsyncHTTPConnection, bool]:
        """A connection to this URL's host, and whether it was used before; `fresh`: a new one in any case."""
        place = place_of(target)
        while not fresh and (idle := self._idle.get(place)):
            kept = idle.pop()
            self._idle_count -= 1
            if not kept.has_expired():
                return kept, True
            await _close(kept)
        made = httpcore.AsyncHTTPConnection(
            httpcore.Origin(*place),
            ssl_context=self._tls,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=self._backend,
        )
        return made, False

    async def done(self, connection: httpcore.AsyncHTTPConnection, target: httpx.URL) -> None:
        """Keep a connection whose answer was read to its end, and ended there; close any other."""
        if not connection.is_idle() or connection.is_closed() or _has_more(connection):
            await _close(connection)
            return
        place = place_of(target)
        self._idle.setdefault(place, []).append(connection)
        self._idle.move_to_end(place)
        self._idle_count += 1
        if self._idle_count > self._most_idle:
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        place, idle = next(iter(self._idle.items()))
        if idle:
            self._idle_count -= 1
            await _close(idle.pop(0))
        if not idle:
            del self._idle[place]


def _has_more(connection: httpcore.AsyncHTTPConnection) -> bool:
    """Whether bytes came behind the answer's end: they would be taken for the next one's. True where nobody can say."""
    within = getattr(getattr(connection, "_connection", None), "_h11_state", None)
    return getattr(within, "trailing_data", None) != (b"", False)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with suppress(OSError, httpcore.NetworkError):  # what is thrown away need not say goodbye
        await connection.aclose()


def place_of(target: httpx.URL) -> Place:
    """Scheme, host and port as httpcore wants them."""
    return target.raw_scheme, target.raw_host, target.port or (443 if target.scheme == "https" else 80)


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to what was looked up and checked, never to a name."""

    def __init__(self, allow_private: bool, resolve: Resolve, dial: Dial) -> None:
        self._allow_private, self._resolve, self._dial = allow_private, resolve, dial
        self._known: OrderedDict[str, tuple[float, asyncio.Future[list[str]]]] = OrderedDict()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - the signature is httpcore's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of a host that answers. Raises Fault: address_refused."""
        addresses = await self._addresses(host, port)
        refused = {address: why for address in addresses if (why := refusal(address))}
        allowed = [a for a in addresses if self._allow_private or a not in refused]
        if not allowed:
            address, why = next(iter(refused.items()))
            arrow = "" if host == address else f"{host} → "
            raise Fault(Cause.ADDRESS_REFUSED, f"{arrow}{address} ({why}) is no public address.")
        for address in allowed[:-1][:TRIED]:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._dial(address, port, (timeout or CONNECT_S) / 2)
        return await self._dial(allowed[-1], port, timeout)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """What a host's name stands for, asked once in a while and by one at a time."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        now = asyncio.get_running_loop().time()
        until, asked = self._known.get(host, (0.0, None))
        if asked is None or until < now or (asked.done() and _failed(asked)):
            asked = asyncio.ensure_future(self._resolve(host, port))
            asked.add_done_callback(_failed)  # looks at its fault, also where nobody waits any more
            self._known[host] = now + NAMES_KEPT_S, asked
            if len(self._known) > NAMES_KEPT:
                self._known.popitem(last=False)
        return await asyncio.shield(asked)


def _failed(asked: asyncio.Future[list[str]]) -> bool:
    return asked.cancelled() or asked.exception() is not None
