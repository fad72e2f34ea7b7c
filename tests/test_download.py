"""Fetching URLs from a real server that is good, slow, endless, lying or gone: each a body as it came, or a cause."""

from __future__ import annotations

import email.utils
import gzip
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from curator.download import DownloadSettings, Place, Shelf, download
from curator.download.urls import target_of
from curator.errors import Cause, ConfigError, Fault
from tests.conftest import make_image
from tests.servers import CLOSE, Site, moved, reply, serving

IMAGE = make_image(1)
QUICK = {"allow_private_addresses": True, "back_off_s": 0.01, "per_host_per_s": 1e6}


@pytest.fixture(name="site")
def a_site() -> Iterator[Site]:
    """A server that has `/good.jpg`."""
    with serving() as site:
        site.answers["/good.jpg"] = reply(200, IMAGE)
        yield site


def silent(**_: object) -> None:
    """Nobody listens."""


@pytest.fixture(name="fetch")
def a_fetch(site: Site, tmp_path: Path) -> Callable[..., list[Place | Fault]]:
    """`fetch("/a", "/b", retries=0)`: what became of these targets of the site."""

    def fetch(*targets: str, **changes: Any) -> list[Place | Fault]:
        urls = [target if "://" in target else site.url + target for target in targets]
        download(urls, tmp_path / "web", DownloadSettings(**{**QUICK, **changes}), silent)
        return Shelf(tmp_path / "web").look(urls)

    return fetch


Fetch = Callable[..., list[Place | Fault]]


def content(place: Place | Fault) -> bytes:
    """The bytes that lie where a place says."""
    assert isinstance(place, Place), place
    with open(place.tar, "rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def fault(found: Place | Fault) -> tuple[Cause, str]:
    """Cause and sentence of what failed."""
    assert isinstance(found, Fault), found
    return found.cause, found.detail


def test_a_good_image_comes_as_it_is(fetch: Fetch, site: Site) -> None:
    """Bytes, type and final URL are what the server gave; the request names Curator and asks for nothing packed."""
    [found] = fetch("/good.jpg", contact="mail@pictures.example")
    assert content(found) == IMAGE
    assert isinstance(found, Place)
    assert (found.content_type, found.final_url) == ("image/jpeg", f"{site.url}/good.jpg")
    headers = site.asked[0].headers
    assert headers["User-Agent"].startswith("Curator/")
    assert "mail@pictures.example" in headers["User-Agent"]
    assert (headers["Accept-Encoding"], headers["Host"]) == ("identity", f"127.0.0.1:{site.port}")


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (404, Cause.NOT_FOUND), (410, Cause.NOT_FOUND), (401, Cause.FORBIDDEN), (403, Cause.FORBIDDEN),
        (451, Cause.FORBIDDEN), (500, Cause.SERVER_ERROR), (503, Cause.SERVER_ERROR), (599, Cause.SERVER_ERROR),
        (418, Cause.BAD_STATUS), (204, Cause.BAD_STATUS), (206, Cause.BAD_STATUS), (304, Cause.BAD_STATUS),
        (302, Cause.BAD_STATUS), (429, Cause.RATE_LIMITED), (408, Cause.TIMEOUT),
    ],
)  # fmt: skip
def test_a_status_is_told_by_its_meaning(status: int, cause: Cause, fetch: Fetch, site: Site) -> None:
    """The number stands in the sentence; a redirect without a place to go to is a bad status."""
    site.answers["/x"] = reply(status)
    found, told = fault(fetch("/x", retries=0)[0])
    assert found == cause
    assert str(status) in told


def test_a_server_that_recovers_is_asked_again(fetch: Fetch, site: Site) -> None:
    """500, then 503, then good: three requests, one image."""
    site.answers["/x"] = lambda n: reply((500, 503, 200)[n], IMAGE)
    assert content(fetch("/x")[0]) == IMAGE
    assert site.targets() == ["/x"] * 3


def test_what_is_no_passing_fault_is_asked_once(fetch: Fetch, site: Site) -> None:
    """404 will be 404 in a second too."""
    fetch("/gone")
    assert site.targets() == ["/gone"]


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_is_left_alone_as_long_as_it_asks(as_date: bool, fetch: Fetch, site: Site) -> None:
    """429 with Retry-After, as seconds or as a date: nobody else asks that host meanwhile."""
    times: list[float] = []

    def busy(n: int) -> Any:
        times.append(time.monotonic())
        after = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return reply(429, b"", None, Retry_After=after) if n == 0 else reply(200, IMAGE)

    def good(n: int) -> Any:
        times.append(time.monotonic())
        return reply(200, IMAGE)

    site.answers |= {"/busy": busy, "/next": good}
    assert all(isinstance(found, Place) for found in fetch("/busy", "/next", concurrency=1))
    assert times[1] - times[0] > 0.9


def test_a_server_that_wants_a_long_rest_gets_it(fetch: Fetch, site: Site) -> None:
    """An hour is not waited for: the URL, and all others of that host, wait for the next run."""
    site.answers["/x"] = reply(429, b"", None, Retry_After="3600")
    first, second = fetch("/x", "/good.jpg", concurrency=1)
    assert fault(first) == (Cause.RATE_LIMITED, "The server answered 429 Too Many Requests.")
    assert fault(second) == (Cause.RATE_LIMITED, "127.0.0.1 asks to be left alone for 3,600 s (429).")
    assert site.targets() == ["/x"]
    site.answers["/x"] = reply(200, IMAGE)
    assert all(isinstance(found, Place) for found in fetch("/x", "/good.jpg"))


def test_a_slow_drip_is_cut_off(fetch: Fetch, site: Site) -> None:
    """A byte now and then keeps a socket's own timeout from ever striking: the rate does not."""
    site.answers["/x"] = itertools.chain(reply(200, IMAGE[:1], Content_Length="1000000"), *([0.05, b"x"] * 400,))
    cause, told = fault(fetch("/x", patience_s=0.3, min_bytes_per_s=1000, retries=0)[0])
    assert cause == Cause.TOO_SLOW
    assert "bytes came in 0." in told


def test_the_deadline_holds_for_headers_and_body(fetch: Fetch, site: Site) -> None:
    """Neither a server that says nothing, nor one that drips its headers, nor a body for ever keeps a URL longer."""
    site.answers["/silent"] = [3.0]
    site.answers["/headers"] = itertools.chain([b"HTTP/1.1 200 So\r\n"], *([b"A: b\r\n", 0.05] for _ in range(99)))
    site.answers["/body"] = itertools.chain(reply(200, IMAGE, Content_Length="9999999"), *([b"x", 0.05] for _ in range(99)))
    begun = time.monotonic()
    found = fetch("/silent", "/headers", "/body", timeout_s=0.5, retries=5)
    assert [fault(f)[0] for f in found] == [Cause.TIMEOUT] * 3
    assert fault(found[0])[1] == "No answer came within the 0.5 s that a URL is given."
    assert time.monotonic() - begun < 3
    assert len(site.asked) == 3, "no second try: there is no time left for one"


def test_an_endless_body_is_cut_off(fetch: Fetch, site: Site) -> None:
    """No length, no end: not more is read than allowed."""
    head = b"HTTP/1.1 200 So\r\nContent-Type: image/jpeg\r\n\r\n" + IMAGE
    site.answers["/x"] = itertools.chain([head], itertools.repeat(bytes(1 << 16), 1000))
    assert fault(fetch("/x", max_bytes=300_000)[0]) == (Cause.TOO_LARGE, "More than the 293.0 KiB allowed.")


def test_a_body_announced_too_large_is_not_read(fetch: Fetch, site: Site) -> None:
    """5 GB: the header is enough."""
    site.answers["/x"] = reply(200, b"", Content_Length="5000000000")
    assert fault(fetch("/x")[0]) == (Cause.TOO_LARGE, "4.7 GiB are announced, more than the 64.0 MiB allowed.")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_shorter_than_announced_is_truncated(chunked: bool, fetch: Fetch, site: Site) -> None:
    """A connection that breaks off gives no half image: not with a length, and not in chunks without the last."""
    if chunked:
        head = b"HTTP/1.1 200 So\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        site.answers["/x"] = [head + b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n", CLOSE]
    else:
        site.answers["/x"] = [*reply(200, IMAGE, Content_Length="5000"), CLOSE]
    cause, told = fault(fetch("/x", retries=1)[0])
    assert cause == Cause.TRUNCATED_BODY
    assert told == f"The body ended at byte {len(IMAGE):,}{'' if chunked else ' of 5,000'}."
    assert len(site.asked) == 2


def test_a_body_longer_than_announced_ends_where_announced(fetch: Fetch, site: Site) -> None:
    """What follows is never taken for the answer to the next request."""
    site.answers["/x"] = reply(200, IMAGE + b"HTTP/1.1 200 So\r\n\r\nevil", Content_Length=str(len(IMAGE)))
    first, second = fetch("/x", "/good.jpg", concurrency=1)
    assert content(first) == content(second) == IMAGE


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd"])
def test_a_packed_body_is_refused(coding: str, fetch: Fetch, site: Site) -> None:
    """1 KB could grow to 1 GB: nothing is unpacked, and nobody asked for it."""
    site.answers["/x"] = reply(200, gzip.compress(IMAGE), Content_Encoding=coding)
    cause, told = fault(fetch("/x")[0])
    assert (cause, coding in told) == (Cause.CONTENT_ENCODED, True)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json", "application/octet-stream", None])
def test_a_page_is_no_image(kind: str | None, fetch: Fetch, site: Site) -> None:
    """By the server's own words and by its first bytes; a long one is not read to its end."""
    site.answers["/short"] = reply(200, b"<html><body>404</body></html>", kind)
    site.answers["/long"] = itertools.chain(reply(200, b"<html>" + b" " * 600, kind, Content_Length="900000"), [3.0])
    for found in fetch("/short", "/long", timeout_s=2.0):
        cause, told = fault(found)
        assert cause == Cause.NOT_AN_IMAGE_TYPE
        assert 'starts with "<html"' in told


@pytest.mark.parametrize("kind", ["application/octet-stream", "binary/octet-stream", "text/plain", None, "image/png"])
def test_an_image_under_another_type_is_an_image(kind: str | None, fetch: Fetch, site: Site) -> None:
    """Its first bytes say so; its name in the tar ends as its bytes are, not as its type."""
    site.answers["/x"] = reply(200, IMAGE, kind)
    assert content(fetch("/x")[0]) == IMAGE


def test_an_empty_body_is_told_as_such(fetch: Fetch, site: Site) -> None:
    """200 and nothing."""
    site.answers["/x"] = reply(200, b"")
    assert fault(fetch("/x")[0]) == (Cause.EMPTY_FILE, "The server sent no bytes.")


def test_redirects_are_followed_so_far(fetch: Fetch, site: Site) -> None:
    """Absolute, relative and schemeless ones; one more than allowed is told."""
    site.answers |= {
        "/1": moved("/2", 301), "/2": moved(f"//127.0.0.1:{site.port}/3", 307), "/3": moved("4", 308),
        "/4": moved(f"{site.url}/good.jpg", 303),
    }  # fmt: skip
    cause, told = fault(fetch("/1", max_redirects=3)[0])
    assert cause == Cause.TOO_MANY_REDIRECTS
    assert told.startswith("More than 3 redirects; the next was to http://127.0.0.1")
    [found] = fetch("/1", max_redirects=4, retry=["too_many_redirects"])
    assert content(found) == IMAGE
    assert isinstance(found, Place)
    assert found.final_url == f"{site.url}/good.jpg"


def test_a_circle_of_redirects_is_told(fetch: Fetch, site: Site) -> None:
    """To itself, and by way of another: as soon as it closes."""
    site.answers |= {"/self": moved("/self"), "/a": moved("/b"), "/b": moved("/a")}
    assert [fault(f)[0] for f in fetch("/self", "/a", max_redirects=50)] == [Cause.REDIRECT_LOOP] * 2
    assert sorted(site.targets()) == ["/a", "/b", "/self"]


@pytest.mark.parametrize(
    ("headers", "asks"),
    [
        *(({"X_Robots_Tag": d}, d) for d in ("noai", "noimageai", "noindex", "noimageindex", "noml", "none")),
        ({"X_Robots_Tag": "max-snippet: 5, NOAI"}, "noai"),
        ({"X_Robots_Tag": "curator: noai"}, "noai"),
        ({"X_Robots_Tag": "otherbot: nofollow, curator: noai"}, "noai"),
        ({"TDM_Reservation": "1"}, "tdm-reservation: 1"),
    ],
)
def test_an_opt_out_is_respected(headers: Mapping[str, str], asks: str, fetch: Fetch, site: Site) -> None:
    """By default the bytes are not taken; where the user decides otherwise, what the server asked for is kept."""
    site.answers["/x"] = reply(200, IMAGE, **headers)
    assert fault(fetch("/x")[0]) == (Cause.OPTED_OUT, f"The server asks that this image not be used for AI ({asks}).")
    [found] = fetch("/x", respect_opt_out=False)
    assert content(found) == IMAGE
    assert isinstance(found, Place)
    assert found.opt_out == asks


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Robots_Tag": "nofollow"},
        {"X_Robots_Tag": "all"},
        {"X_Robots_Tag": "otherbot: noai, noindex"},
        {"X_Robots_Tag": "unavailable_after: 25 Jun 2050 15:00:00 PST"},
        {"TDM_Reservation": "0"},
    ],
)
def test_what_is_no_opt_out_is_none(headers: Mapping[str, str], fetch: Fetch, site: Site) -> None:
    """Other directives, and those for other robots."""
    site.answers["/x"] = reply(200, IMAGE, **headers)
    assert content(fetch("/x")[0]) == IMAGE


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("/a,b.jpg", "/a,b.jpg"),
        ("/c.jpg?x=1&amp;y=2", "/c.jpg?x=1&y=2"),
        ("/c.jpg?x=1&#38;y=2&#x26;z=3", "/c.jpg?x=1&y=2&z=3"),
        ("/c.jpg?x=1&copy=2&lt=3", "/c.jpg?x=1&copy=2&lt=3"),
        ("/piñata.jpg", "/pi%C3%B1ata.jpg"),
        ("/사진.jpg", "/%EC%82%AC%EC%A7%84.jpg"),
        ("/two words.jpg?q=a b", "/two%20words.jpg?q=a%20b"),
        ("/two%20words.jpg", "/two%20words.jpg"),
        ("/pi%C3%B1ata.jpg", "/pi%C3%B1ata.jpg"),
        ("/pi%c3%b1ata ñ.jpg", "/pi%c3%b1ata%20%C3%B1.jpg"),
        ("/100%.jpg", "/100%.jpg"),
        ("/a.jpg#part", "/a.jpg"),
        ("/a+b;c=d@e:f.jpg", "/a+b;c=d@e:f.jpg"),
        ("  /e.jpg \t", "/e.jpg"),
    ],
)
def test_urls_as_people_have_them_arrive(given: str, asked: str, site: Site, tmp_path: Path) -> None:
    """Encoded once, never twice; the URL as given is what is looked up and reported."""
    site.answers[asked] = reply(200, IMAGE)
    blank = " " * (len(given) - len(given.lstrip()))
    url = f"{blank}{site.url}{given.lstrip()}"
    download([url], tmp_path, DownloadSettings(**QUICK), silent)
    assert site.targets() == [asked]
    assert content(Shelf(tmp_path).look([url])[0]) == IMAGE


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        *((u, Cause.BAD_SCHEME) for u in ("file:///etc/passwd", "ftp://a/b.jpg", "data:image/png;base64,AA", "gopher://a/", "pipe:ls", "s3://b/k.jpg", "javascript:alert(1)")),
        *((u, Cause.BAD_URL) for u in ("", "   ", "a.jpg", "/a.jpg", "pictures.example/a.jpg", "pictures.example:80/a.jpg", "//pictures.example/a.jpg", "http://", "http:/a", "http:///a.jpg", "http://[::1/a", "http://a b/c.jpg", "http://h:0/", "http://h:99999/", "http://h:x/", "http://a\x00b/", "http://h/a\nb.jpg", "http://h/\ud800.jpg", "http://1.2.3.999/", "http://0x/", f"http://h/{'a' * 20_000}", "http://[fe80::1%25eth0]/")),
    ],
)  # fmt: skip
def test_what_nobody_can_ask_for_is_told_without_asking(url: str, cause: Cause, tmp_path: Path) -> None:
    """http and https only, and only what is a URL: a row each, and nothing leaves the machine."""
    download([url], tmp_path, DownloadSettings(), silent, resolve=_nobody)
    assert fault(Shelf(tmp_path).look([url])[0])[0] == cause


async def _nobody(host: str, port: int) -> list[str]:
    raise AssertionError(f"{host} was looked up")


def test_a_host_ends_where_a_browser_ends_it() -> None:
    """User names and backslashes do not make another host of it; neither name nor password is sent."""
    assert target_of("http://good.example\\@evil.example/a").host == "good.example"
    target = target_of("http://name:secret@good.example:81/a")
    assert (target.host, target.port, "secret" in str(target)) == ("good.example", 81, False)
    assert target_of("HTTP://Bücher.example/").raw_host == b"xn--bcher-kva.example"


def test_hosts_that_are_not_there_are_told(fetch: Fetch, site: Site) -> None:
    """No such name; a closed port; something that does not speak HTTP; a server that hangs up."""
    site.answers |= {"/ssh": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSE], "/bye": [CLOSE]}
    found = fetch("http://nobody.invalid/a", "http://127.0.0.1:1/a", "/ssh", "/bye", retries=1)
    told = [fault(f) for f in found]
    assert told[0][0] in {Cause.UNKNOWN_HOST, Cause.CONNECTION_FAILED}  # a machine without a network cannot know
    assert told[1] == (Cause.CONNECTION_FAILED, "127.0.0.1: Connection refused.")
    assert told[2][0] == Cause.NOT_HTTP
    assert told[3][0] == Cause.CONNECTION_FAILED
    assert site.targets().count("/bye") >= 2


def test_a_dead_host_does_not_hold_up_the_run(fetch: Fetch) -> None:
    """After ten URLs without an answer its others are not tried; the next run tries them."""
    found = fetch(*(f"http://127.0.0.1:1/{n}" for n in range(50)), concurrency=2, retries=0)
    told = [fault(f)[1] for f in found]
    assert told.count("127.0.0.1 answered none of 10 URLs in a row; this one was not tried.") >= 38


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"concurrency": 0, "per_host": 0}, "concurrency: must be at least 1, not 0\nper_host: must be at least 1"),
        ({"timeout_s": 0}, "timeout_s: must be more than 0"),
        ({"retries": -1}, "retries: must be at least 0"),
        ({"retry": "tranisent"}, "Did you mean transient?"),
        ({"retry": ["not_fuond"]}, "retry: 'not_fuond' is no cause. Did you mean not_found?"),
        ({"contact": "a\r\nX: y"}, "contact: must be one line of plain ASCII"),
    ],
)
def test_wrong_settings_are_told_in_words(wrong: dict[str, Any], words: str) -> None:
    """All at once, before anything is fetched."""
    with pytest.raises(ConfigError) as told:
        DownloadSettings(**wrong)
    assert words in str(told.value)


def test_no_host_gets_more_than_its_share(fetch: Fetch, site: Site) -> None:
    """At once, and in a second."""
    for n in range(40):
        site.answers[f"/{n}"] = [0.02, *reply(200, IMAGE)]
    fetch(*(f"/{n}" for n in range(20)), per_host=3)
    assert site.most_under_way == 3
    begun = time.monotonic()
    assert len(fetch(*(f"/{n}" for n in range(20, 40)), per_host_per_s=40)) == 20 < 40 * (time.monotonic() - begun) + 1


def test_a_slow_host_does_not_keep_others_waiting(fetch: Fetch, site: Site) -> None:
    """A list that begins with many URLs of a slow host: the next host's turn comes at once."""
    site.answers |= {f"/slow{n}": [0.3, *reply(200, IMAGE)] for n in range(4)} | {"/quick": reply(200, IMAGE)}
    fetch(*(f"/slow{n}" for n in range(4)), f"http://localhost:{site.port}/quick", per_host=1, concurrency=2)
    assert site.targets().index("/quick") < 2


def test_progress_is_told_with_failures_by_cause(site: Site, tmp_path: Path) -> None:
    """The last word is the sum."""
    told: list[tuple[int, Mapping[Cause, int]]] = []

    def report(*, done: int, failed: Mapping[Cause, int]) -> None:
        told.append((done, dict(failed)))

    urls = [f"{site.url}/good.jpg", f"{site.url}/gone", "file:///x", f"{site.url}/gone2"]
    download(urls, tmp_path, DownloadSettings(**QUICK), report)
    assert told[-1] == (4, {Cause.NOT_FOUND: 2, Cause.BAD_SCHEME: 1})
