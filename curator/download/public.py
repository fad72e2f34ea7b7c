"""Which addresses belong to the public internet: an allow rule of our own, since Python's `is_global` calls
link-local addresses public where they are wrapped in an IPv6 form, and its ranges differ between patch releases.

Source: IANA's registries of special-purpose addresses (IPv4 and IPv6), RFC 4291, 6052, 3056, 4380, 5214.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_V4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a provider",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "for documentation",
    "192.31.196.0/24": "reserved",
    "192.52.193.0/24": "reserved",
    "192.88.99.0/24": "reserved",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "reserved",
    "198.18.0.0/15": "for benchmarks",
    "198.51.100.0/24": "for documentation",
    "203.0.113.0/24": "for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_V6 = {  # within 2000::/3, the only range that is given out; what lies outside is refused as a whole
    "2001::/32": "a Teredo tunnel",
    "2001::/23": "reserved",
    "2001:db8::/32": "for documentation",
    "2620:4f:8000::/48": "reserved",
    "3fff::/20": "for documentation",
}
_OUTSIDE = {  # only to say what it is
    "::/128": "this host",
    "::1/128": "loopback",
    "::ffff:0:0:0/96": "an IPv4 address in translation",
    "64:ff9b:1::/48": "a local NAT64",
    "100::/64": "a black hole",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
    "::/96": "an IPv4 address in a form that is no longer used",
}
_REFUSED_V4 = [(IPv4Network(net), what) for net, what in _V4.items()]
_REFUSED_V6 = [(IPv6Network(net), what) for net, what in _V6.items()]
_NAMED_V6 = [(IPv6Network(net), what) for net, what in _OUTSIDE.items()]
_GIVEN_OUT = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")


def refusal(address: str) -> str | None:
    """Why an address is not to be connected to (`"loopback"`, `"link-local"` ...); None where it is public.

    `address` is what a resolver gives. Where an IPv6 address carries an IPv4 one, that one decides as well.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    return _refusal_v4(parsed) if isinstance(parsed, IPv4Address) else _refusal_v6(parsed)


def _refusal_v4(address: IPv4Address) -> str | None:
    return next((what for net, what in _REFUSED_V4 if address in net), None)


def _refusal_v6(address: IPv6Address) -> str | None:
    if address.scope_id is not None:
        return "link-local"
    carried = _carried(address)
    if carried is not None and (what := _refusal_v4(carried)):
        return f"{carried} in an IPv6 form, {what}"
    if address.ipv4_mapped is not None or address in _NAT64:
        return None
    if address not in _GIVEN_OUT:
        return next((what for net, what in _NAMED_V6 if address in net), "not given out")
    return next((what for net, what in _REFUSED_V6 if address in net), None)


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address within an IPv4-mapped, NAT64, 6to4, Teredo, ISATAP or IPv4-compatible one."""
    number = int(address)
    if address in _SIX_TO_FOUR:
        return IPv4Address(number >> 80 & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    if number >> 32 & 0xFDFFFFFF == 0x5EFE:  # ISATAP: 0000:5efe or 0200:5efe before it
        return IPv4Address(number & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64 or (number >> 32 == 0 and number > 1):
        return IPv4Address(number & 0xFFFFFFFF)
    return None
