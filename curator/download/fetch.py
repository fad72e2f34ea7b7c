"""One request and what came of it: a body, the place that it moved to, or what went wrong, in a sentence.

Believes nothing that a server says: bytes, seconds and speed are limited, a body must be as long as announced and
unpacked, and look like an image where the server does not call it one.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import httpcore
import httpx

from curator.commit import explained
from curator.download.client import CONNECT_S, Client, place_of
from curator.download.settings import DownloadSettings
from curator.errors import Cause, CuratorError, Fault
from curator.signatures import beginning, format_of
from curator.units import readable

IN_MEMORY = 1 << 20
"""Bytes of a body that are held in memory; what is larger waits in a nameless file."""
HEAD = 4096
"""Bytes that tell what a body is."""
DRAINED = 1 << 16
"""Bytes of an error page that are read so that the connection can be used again."""

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""Directives of X-Robots-Tag that are obeyed; `none` is noindex and nofollow."""
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-download"})
NO_IMAGES = frozenset({"PDF", "EPS"})
NOT_FOUND, FORBIDDEN = frozenset({404, 410}), frozenset({401, 402, 403, 407, 451})
MOVED = frozenset({301, 302, 303, 307, 308})


@dataclass
class Body:
    """What came, as it came."""

    folder: Path
    size: int = 0
    head: bytes = b""
    _blocks: list[bytes] = field(default_factory=list)
    _file: IO[bytes] | None = None

    def add(self, block: bytes) -> None:
        """Raises OutsideError where the disk cannot take it."""
        self.size += len(block)
        if len(self.head) < HEAD:
            self.head += block[: HEAD - len(self.head)]
        self._blocks.append(block)
        if self._file is not None or self.size > IN_MEMORY:
            try:
                self._file = self._file or TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed with the body
                self._file.writelines(self._blocks)
            except OSError as error:
                raise explained(error, self.folder) from error
            self._blocks.clear()

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in order."""
        if self._file is None:
            yield from self._blocks
            return
        self._file.seek(0)
        while block := self._file.read(IN_MEMORY):
            yield block

    def close(self) -> None:
        """Let go of the bytes."""
        self._blocks.clear()
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class Got:
    """The server gave a body, whole."""

    status: int
    body: Body
    content_type: str
    opt_out: str  # what the server asks for, which was not obeyed


@dataclass(frozen=True)
class Moved:
    """The server says where it is now."""

    status: int
    location: str


@dataclass(frozen=True)
class Trouble:
    """Nothing came of it."""

    cause: Cause
    detail: str
    status: int = 0  # 0: the server gave no answer
    wait_s: float | None = None  # how long the server wants to be left alone
    content_type: str = ""


@dataclass
class _State:
    """How far a request is, so that a timeout can be told."""

    deadline: float
    status: int = 0
    begun: float = 0.0
    body: Body | None = None


class Fetcher:
    """Makes requests, one at a time for each caller."""

    def __init__(self, settings: DownloadSettings, client: Client, folder: Path) -> None:
        self.settings, self.client, self.folder = settings, client, folder
        agent = settings.agent.encode("ascii")
        self._headers = [(b"User-Agent", agent), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]

    async def get(self, target: httpx.URL, seconds: float) -> Got | Moved | Trouble:
        """Ask once, in so many seconds. A kept connection that proves dead costs no try: servers close them at will."""
        state = _State(asyncio.get_running_loop().time() + seconds)
        result, reused = await self._once(target, state, fresh=False)
        if reused and isinstance(result, Trouble) and not result.status and result.cause == Cause.CONNECTION_FAILED:
            result, _ = await self._once(target, state, fresh=True)
        return result

    async def _once(self, target: httpx.URL, state: _State, fresh: bool) -> tuple[Got | Moved | Trouble, bool]:
        connection, reused = await self.client.connection(target, fresh)
        result: Got | Moved | Trouble | None = None
        try:
            async with asyncio.timeout_at(state.deadline) as clock:
                result = await self._ask(connection, target, state, clock)
        except TimeoutError:
            result = self._late(state)
        except Fault as fault:
            result = Trouble(fault.cause, fault.detail, state.status)
        except CuratorError:
            raise
        except Exception as error:  # a strange server costs a row, never the run
            result = _broken(error, target.host, state)
        finally:
            if state.body is not None and not isinstance(result, Got):
                state.body.close()
            await self.client.done(connection, target)
        return result, reused

    async def _ask(
        self, connection: httpcore.AsyncHTTPConnection, target: httpx.URL, state: _State, clock: asyncio.Timeout
    ) -> Got | Moved | Trouble:
        scheme, host, port = place_of(target)
        request = httpcore.Request(
            b"GET",
            httpcore.URL(scheme=scheme, host=host, port=port, target=target.raw_path),
            headers=[(b"Host", target.netloc), *self._headers],
            extensions={"timeout": {"connect": CONNECT_S}},
        )
        answer = await connection.handle_async_request(request)
        state.status = answer.status
        try:
            if answer.status == 200:
                return await self._body(answer, state, clock)
            await self._drain(answer)
            location = _header(answer, b"location")
            if answer.status in MOVED and location:
                return Moved(answer.status, location)
            return _refused(answer)
        finally:
            await answer.aclose()

    async def _drain(self, answer: httpcore.Response) -> None:
        """Read what little comes with a refusal, so that the connection can be used again."""
        length = _header(answer, b"content-length")
        if length.isdigit() and int(length) <= DRAINED:
            with suppress(httpcore.NetworkError, httpcore.ProtocolError):
                async for _ in answer.aiter_stream():
                    pass

    async def _body(self, answer: httpcore.Response, state: _State, clock: asyncio.Timeout) -> Got | Trouble:
        kind = _header(answer, b"content-type").partition(";")[0].strip().lower()
        opt_out = opted_out(answer.headers)
        if opt_out and self.settings.respect_opt_out:
            detail = f"The server asks that this image not be used for AI ({opt_out})."
            return Trouble(Cause.OPTED_OUT, detail, answer.status, content_type=kind)
        if trouble := self._trouble_ahead(answer):
            return Trouble(*trouble, answer.status, content_type=kind)
        loop, named = asyncio.get_running_loop(), kind.startswith("image/")
        state.begun = loop.time()
        body = state.body = Body(self.folder)
        async for block in answer.aiter_stream():
            body.add(block)
            if body.size > self.settings.max_bytes:
                return Trouble(Cause.TOO_LARGE, self._too_large("More than"), answer.status, content_type=kind)
            if not named and len(body.head) >= 512:
                if not _is_image(body):
                    break
                named = True
            clock.reschedule(min(state.deadline, self._given_up(state)))
        if not body.size:
            return Trouble(Cause.EMPTY_FILE, "The server sent no bytes.", answer.status, content_type=kind)
        if not named and not _is_image(body):
            return Trouble(Cause.NOT_AN_IMAGE_TYPE, _not_an_image(kind, body), answer.status, content_type=kind)
        return Got(answer.status, body, kind, opt_out)

    def _trouble_ahead(self, answer: httpcore.Response) -> tuple[Cause, str] | None:
        """What the headers alone forbid."""
        packed = _header(answer, b"content-encoding").lower()
        if packed not in {"", "identity"}:
            return Cause.CONTENT_ENCODED, f"The server sent the body packed ({packed[:40]}), though asked not to."
        length = _header(answer, b"content-length")
        if length.isdigit() and int(length) > self.settings.max_bytes:
            return Cause.TOO_LARGE, self._too_large(f"{readable(int(length))} are announced,")
        return None

    def _too_large(self, what: str) -> str:
        return f"{what} {'more than ' if what.endswith(',') else ''}the {readable(self.settings.max_bytes)} allowed."

    def _given_up(self, state: _State) -> float:
        """When the body has come too slowly, unless more of it comes before."""
        got = state.body.size if state.body else 0
        rate = self.settings.min_bytes_per_s
        return state.begun + max(self.settings.patience_s, got / rate) if rate else state.deadline

    def _late(self, state: _State) -> Trouble:
        now, most = asyncio.get_running_loop().time(), self.settings.timeout_s
        if state.body is None:
            what = "The answer did not end" if state.status else "No answer came"
            return Trouble(Cause.TIMEOUT, f"{what} within the {most:g} s that a URL is given.", state.status)
        so_far = f"{readable(state.body.size)} came"
        if now < state.deadline:
            least, took = self.settings.min_bytes_per_s, now - state.begun
            detail = f"{so_far} in {took:.1f} s; at least {readable(int(least))} a second are expected."
            return Trouble(Cause.TOO_SLOW, detail, state.status)
        return Trouble(Cause.TIMEOUT, f"{so_far} within the {most:g} s that a URL is given.", state.status)


def _refused(answer: httpcore.Response) -> Trouble:
    """What a status other than 200 means."""
    status = answer.status
    told = f"The server answered {status} {_phrase(status)}".rstrip() + "."
    if status == 429 or status == 503:
        wait = _retry_after(_header(answer, b"retry-after"))
        return Trouble(Cause.RATE_LIMITED if status == 429 else Cause.SERVER_ERROR, told, status, wait)
    if status == 408:
        return Trouble(Cause.TIMEOUT, told, status)
    if status in NOT_FOUND:
        return Trouble(Cause.NOT_FOUND, told, status)
    if status in FORBIDDEN:
        return Trouble(Cause.FORBIDDEN, told, status)
    return Trouble(Cause.SERVER_ERROR if 500 <= status < 600 else Cause.BAD_STATUS, told, status)


def _phrase(status: int) -> str:
    """`Not Found` and the like; nothing for a status that nobody knows."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _broken(error: Exception, host: str, state: _State) -> Trouble:
    """An exception of the client's, in words."""
    if state.body is not None:
        detail = f"The body ended at byte {state.body.size:,}{_announced(error)}."
        return Trouble(Cause.TRUNCATED_BODY, detail, state.status)
    if isinstance(error, httpcore.ConnectTimeout):
        return Trouble(Cause.TIMEOUT, f"{host} took no connection within {CONNECT_S:g} s.")
    if (failure := _tls_failure(error)) is not None:
        return Trouble(Cause.TLS_FAILED, f"{host}: {failure}.")
    if isinstance(error, httpcore.RemoteProtocolError) and "disconnected" not in str(error):
        return Trouble(Cause.NOT_HTTP, f"{host} answers in something else than HTTP: {_plain(error)}.", state.status)
    if isinstance(error, httpcore.LocalProtocolError):
        return Trouble(Cause.BAD_URL, f"This cannot be asked of a server: {_plain(error)}.")
    if isinstance(error, (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)):
        return Trouble(Cause.CONNECTION_FAILED, f"{host}: {_plain(error)}.", state.status)
    return Trouble(Cause.UNREADABLE, f"{host}: {type(error).__name__}: {_plain(error)}.", state.status)


def _plain(error: BaseException) -> str:
    """The system's words where it has any (`Connection refused`), else the first that the exceptions have."""
    chain = list(_chain(error))
    system = [e for e in chain if isinstance(e, OSError) and e.errno and not isinstance(e, ssl.SSLError)]
    told = [os.strerror(e.errno or 0) for e in system] or [str(e) for e in chain if str(e)]
    return " ".join((told or [type(error).__name__])[0].split())[:200].rstrip(".")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _announced(error: Exception) -> str:
    found = re.search(r"expected (\d+)", str(error))
    return f" of {int(found[1]):,}" if found else ""


def _tls_failure(error: BaseException) -> str | None:
    for below in _chain(error):
        if isinstance(below, ssl.SSLCertVerificationError):
            return f"its certificate is not to be trusted: {below.verify_message.rstrip('.')}"
        if isinstance(below, ssl.SSLError) and not isinstance(below, ssl.SSLEOFError):
            return f"no secure connection: {(below.reason or str(below)).replace('_', ' ').lower()}"
    return None


def _header(answer: httpcore.Response, name: bytes) -> str:
    """A header's last value, as text; empty where there is none."""
    found = [value for key, value in answer.headers if key.lower() == name]
    if not found:
        return ""
    try:
        return found[-1].decode("utf-8")
    except UnicodeDecodeError:
        return found[-1].decode("latin-1")


def _retry_after(value: str) -> float | None:
    """Seconds, from a number or a date."""
    if value.strip().isdigit():
        return float(value)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def opted_out(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """What a server asks for in X-Robots-Tag or TDM-Reservation, by whom it may concern; empty where nothing.

    A directive behind another robot's name (`otherbot: noai`) is not meant for Curator.
    """
    for name, value in headers:
        text = value.decode("latin-1").strip().lower()
        if name.lower() == b"tdm-reservation" and text == "1":
            return "tdm-reservation: 1"
        if name.lower() != b"x-robots-tag":
            continue
        meant = True
        for part in text.split(","):
            before, colon, behind = (word.strip() for word in part.partition(":"))
            if colon and before not in VALUED:
                meant = before in {"curator", "*"}
            directive = behind if colon else before
            if meant and directive in OPT_OUTS:
                return directive
    return ""


def _is_image(body: Body) -> bool:
    return format_of(body.head) not in {None, *NO_IMAGES}


def _not_an_image(kind: str, body: Body) -> str:
    named = f"The server calls it {kind[:60]}" if kind not in UNTYPED else "The server does not say what it is"
    return f"{named}, and it starts with {beginning(body.head)}: no image."
