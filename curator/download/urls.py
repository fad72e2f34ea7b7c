"""URLs as people have them -> what is asked for. The URL as given stays the name of the row."""

from __future__ import annotations

import re
import socket
import unicodedata

import httpx

from curator import ledger
from curator.errors import Cause, Fault

LONGEST = 16_384
"""Characters of a URL; servers take half of that at most."""

_AMPERSAND = re.compile(r"&(?:amp|#0*38|#[xX]0*26);")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_HTTP = re.compile(r"(https?)://([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?:.*@)?(\[[^\]]*\]|[^:]*)(?::(\d*))?", re.DOTALL)
_NUMERIC = re.compile(r"(?:0[xX][0-9a-fA-F]*|\d+)(?:\.(?:0[xX][0-9a-fA-F]*|\d+)){0,3}\.?")


def target_of(url: str) -> httpx.URL:
    """What is asked for: percent-encoded once, host in ASCII, without user, password and fragment.

    `&amp;` as copied from HTML becomes `&` (of HTML's names that one alone: `&copy=1` is a parameter). What is
    percent-encoded already stays. Raises Fault: bad_scheme or bad_url.
    """
    return _parsed(_AMPERSAND.sub("&", url.strip()))


def redirected(base: httpx.URL, location: str) -> httpx.URL:
    """Where a `Location` leads from `base`. Raises Fault: bad_scheme or bad_url."""
    location = location.strip()
    if location.startswith(("//", "\\\\")):
        return _parsed(f"{base.scheme}://{location[2:]}")
    if _SCHEME.match(location):
        return _parsed(location)
    try:
        return base.join(location).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError) as error:
        raise Fault(Cause.BAD_URL, f"Redirected to {shown(location)}, which is no URL.") from error


def _parsed(url: str) -> httpx.URL:
    found = _HTTP.match(url)
    if found is None:
        raise _not_http(url)
    scheme, authority, rest = found.groups()
    within = _AUTHORITY.fullmatch(authority)
    host = _host(within[1]) if within else ""
    port = int(within[2] or 0) if within and within[2] and len(within[2]) < 6 else 0
    if not host or (within and within[2] and not 0 < port < 65536):
        raise Fault(Cause.BAD_URL, f"{shown(url)} names no host and port that can be asked.")
    if len(url) > LONGEST:
        raise Fault(Cause.BAD_URL, f"The URL has {len(url):,} characters; {LONGEST:,} are taken at most.")
    try:
        rest = rest.partition("#")[0]
        rest = f"/{rest[1:]}" if rest.startswith("\\") else rest  # a backslash ends the host, as in a browser
        target = httpx.URL(f"{scheme.lower()}://{host}{f':{port}' if port else ''}{rest}")
        target.raw_path.decode("ascii")
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: lone surrogates, impossible host names
        raise Fault(Cause.BAD_URL, f"{shown(url)} is no URL: {str(error).rstrip('.')}.") from error
    return target


def _host(host: str) -> str:
    """The host without its odd spellings: full-width digits, and IPv4 addresses in octal, hex, or as one number."""
    if not host.isascii():
        host = unicodedata.normalize("NFKC", host)
    if _NUMERIC.fullmatch(host):
        try:
            return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
        except OSError:
            return ""
    return "" if re.search(r"[\s/%<>^|]", host) else host


def _not_http(url: str) -> Fault:
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].lower() in {"http", "https"}:
        return Fault(Cause.BAD_URL, f"{shown(url)} names no host.")
    if scheme and not re.match(r"[^:/]*\.[^:/]*:\d", url):
        return Fault(Cause.BAD_SCHEME, f"{shown(url)}: only http and https are fetched, not {scheme[1].lower()}.")
    detail = f"{shown(url)} does not begin with http:// or https://." if url else "The URL is empty."
    return Fault(Cause.BAD_URL, detail)


def shown(url: str, most: int = 120) -> str:
    """A URL as it can be printed: no control characters, not endless."""
    printable = ledger.shown(url[:most].encode("utf-8", "backslashreplace"))
    return f"{printable}…" if len(url) > most else printable
