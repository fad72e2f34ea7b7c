"""Which addresses may be asked: the rule as a table, and that it holds for the address that is connected to."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from curator.download import DownloadSettings, Place, Shelf, download
from curator.download.public import refusal
from curator.errors import Cause
from tests.conftest import make_image
from tests.servers import Internet, Site, moved, reply, serving

PUBLIC, OTHER = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

REFUSED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.255.255.254 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255
198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
64:ff9b::a9fe:a9fe 64:ff9b::7f00:1 64:ff9b::10.1.2.3 64:ff9b:1::a9fe:a9fe 64:ff9b:1::808:808
2002:7f00:1:: 2002:a9fe:a9fe:: 2002:c0a8:1::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:0:0:0:0:80ff:fffe
2001:10::1 2001:20::1 2001:2::1 2001:db8::1 3fff::1 2620:4f:8000::1 100::1 100:0:0:1::1 5f00::1
fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 4000::1
2606:2800:21f:cb07:0:5efe:7f00:1 2606:2800:21f:cb07:200:5efe:a9fe:a9fe fe80::5efe:127.0.0.1
nonsense 127.1
""".split()

ALLOWED = f"""
{PUBLIC} {OTHER} 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1
169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
223.255.255.255 2a00:1450:4001:81b::200e 2001:4860:4860::8888 2001:200::1 2002:808:808::1
::ffff:8.8.8.8 64:ff9b::8.8.8.8 2606:2800:21f:cb07:0:5efe:808:808
""".split()

SPELLINGS = """
127.0.0.1 0177.0.0.1 0x7f.0.0.1 0x7f000001 2130706433 017700000001 127.1 127.0.1 0 0.0.0.0 10.0.0.1 192.168.1.1
169.254.169.254 0xa9fea9fe 2852039166 127.0.0.1. １２７.０.０.１ ①②⑦.⓪.⓪.① １２７。０。０。１ localhost
[::1] [::] [::127.0.0.1] [::ffff:127.0.0.1] [::ffff:7f00:1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::7f00:1] [2002:7f00:1::]
[2001:0:0:0:0:0:80ff:fffe] [fe80::5efe:7f00:1] [fd00::1] [fe80::1] [ff02::1]
""".split()
"""Hosts of URLs that lead to the machine itself or its neighbours, however they are written."""


def silent(**_: object) -> None:
    """Nobody listens."""


def settings(**changes: object) -> DownloadSettings:
    """Quick, and with private addresses refused as by default."""
    return DownloadSettings(**{"retries": 0, "timeout_s": 5.0, "per_host_per_s": 1e6, **changes})  # type: ignore[arg-type]


@pytest.fixture(name="site")
def a_site() -> object:
    """A server on the loopback interface, which is what must not be reached."""
    with serving() as site:
        site.answers["/secret"] = reply(200, make_image())
        yield site


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Each form in which IANA's registries and the tunnels' RFCs let a private address be written."""
    assert refusal(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_is_allowed(address: str) -> None:
    """The borders of the ranges, and public addresses inside IPv6 forms: what an IPv6-only network is made of."""
    assert refusal(address) is None


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_host_is_asked(host: str, site: Site, tmp_path: Path) -> None:
    """The URL's host as people who mean harm write it: refused for its address, nothing arrives."""
    url = f"http://{host}:{site.port}/secret"
    download([url], tmp_path, settings(), silent)
    [fault] = Shelf(tmp_path).look([url])
    assert not isinstance(fault, Place)
    assert fault.cause == Cause.ADDRESS_REFUSED, fault.detail
    assert not site.connections


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_redirect_leads_to_a_private_host(host: str, site: Site, tmp_path: Path) -> None:
    """A public server answers 302 to each form: the hop is refused, and the row says where it led."""
    net = Internet(site, {"pictures.example": [[PUBLIC]]})
    site.answers["/a.jpg"] = moved(f"http://{host}:{site.port}/secret")
    url = "http://pictures.example/a.jpg"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    [fault] = Shelf(tmp_path).look([url])
    assert not isinstance(fault, Place)
    assert fault.cause == Cause.ADDRESS_REFUSED, fault.detail
    assert "after a redirect to http://" in fault.detail
    assert site.targets() == ["/a.jpg"]
    assert net.dialled == [PUBLIC]


@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("file:///etc/passwd", Cause.BAD_SCHEME),
        ("ftp://pictures.example/a", Cause.BAD_SCHEME),
        ("gopher://127.0.0.1:70/", Cause.BAD_SCHEME),
        ("data:image/png;base64,AAAA", Cause.BAD_SCHEME),
        ("pipe:cat /etc/passwd", Cause.BAD_SCHEME),
        ("http:///a.jpg", Cause.BAD_URL),
        ("http://[::1/a.jpg", Cause.BAD_URL),
    ],
)
def test_no_redirect_leaves_http(location: str, cause: Cause, site: Site, tmp_path: Path) -> None:
    """A Location of another scheme is told as such and never opened."""
    net = Internet(site, {"pictures.example": [[PUBLIC]]})
    site.answers["/a.jpg"] = moved(location)
    url = "http://pictures.example/a.jpg"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    [fault] = Shelf(tmp_path).look([url])
    assert not isinstance(fault, Place)
    assert fault.cause == cause


def test_a_name_that_changes_its_address_gains_nothing(site: Site, tmp_path: Path) -> None:
    """DNS rebinding: public when checked, private a moment later. What was checked is what is dialled."""
    net = Internet(site, {"rebinding.example": [[PUBLIC], ["127.0.0.1"]]})
    url = "http://rebinding.example/secret"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    assert isinstance(Shelf(tmp_path).look([url])[0], Place)
    assert net.dialled == [PUBLIC]
    assert net.looked_up == ["rebinding.example"], "asked once: there is no second answer to fall for"


def test_a_name_that_turned_private_is_refused(site: Site, tmp_path: Path) -> None:
    """The other order: each connection is checked, also of a name that was public before."""
    net = Internet(site, {"rebinding.example": [["127.0.0.1"], [PUBLIC]]})
    url = "http://rebinding.example/secret"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    [fault] = Shelf(tmp_path).look([url])
    assert not isinstance(fault, Place)
    assert fault.cause == Cause.ADDRESS_REFUSED
    assert fault.detail == "rebinding.example → 127.0.0.1 (loopback) is no public address."
    assert not net.dialled


def test_of_several_addresses_only_public_ones_are_dialled(site: Site, tmp_path: Path) -> None:
    """A name with a private address among its public ones is asked at a public one."""
    net = Internet(site, {"mixed.example": [["127.0.0.1", OTHER, "10.0.0.1", PUBLIC]]})
    url = "http://mixed.example/secret"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    assert isinstance(Shelf(tmp_path).look([url])[0], Place)
    assert net.dialled == [OTHER]


def test_host_header_and_tls_name_stay_the_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is dialled, but the certificate must be the name's: a server that holds another is not believed."""
    pem = Path(__file__).parent / "pictures.example.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.sni_callback = lambda connection, name, _: setattr(connection, "asked_for", name)  # type: ignore[assignment]
    with serving(context) as site:
        site.answers["/a.jpg"] = reply(200, make_image())
        net = Internet(site, {"pictures.example": [[PUBLIC]], "other.example": [[PUBLIC]]})
        urls = ["https://pictures.example/a.jpg", "https://other.example/a.jpg"]
        download(urls, tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
        [asked] = site.asked
    found, fault = Shelf(tmp_path).look(urls)
    assert isinstance(found, Place)
    assert (asked.tls_name, asked.headers["Host"]) == ("pictures.example", "pictures.example")
    assert not isinstance(fault, Place)
    assert fault.cause == Cause.TLS_FAILED
    assert "other.example: its certificate is not to be trusted: Hostname mismatch" in fault.detail


def test_no_proxy_of_the_environment_takes_part(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect for us, to wherever it likes: none is asked."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, site.url)
    net = Internet(site, {"pictures.example": [[PUBLIC]]})
    url = "http://pictures.example/secret"
    download([url], tmp_path, settings(), silent, resolve=net.resolve, dial=net.dial)
    assert net.dialled == [PUBLIC]
    assert site.targets() == ["/secret"], "a proxy would have been asked for the whole URL"


def test_private_addresses_are_asked_where_that_is_allowed(site: Site, tmp_path: Path) -> None:
    """For a server of one's own; what was refused before is tried again as soon as it is allowed."""
    url = f"{site.url}/secret"
    download([url], tmp_path, settings(), silent)
    assert not site.asked
    download([url], tmp_path, settings(allow_private_addresses=True), silent)
    assert isinstance(Shelf(tmp_path).look([url])[0], Place)
