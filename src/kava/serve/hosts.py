"""Names that a service is asked under.

A browser lets a page read what comes from its own name. Where that name is made to resolve to this
machine (DNS rebinding), the page of a stranger reaches a service that listens here for this machine
alone; only the Host header still says the stranger's name. Starlette's TrustedHostMiddleware takes
names alone, and no address by its form; here an address is compared as one, and the refusal says
what to do.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from kava.errors import KavaError
from kava.serve.asgi import Scope

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]*)?", re.IGNORECASE)
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Hosts:
    """Which Host headers are taken: this machine's own names, and those that are given.

    Args:
        host: that the service was told to listen on.
        allowed: further names, of `--allow-host`.
        bound: the address that it listens on, if that is known.

    A service that listens on every address of the machine takes each of them, also one that only a
    router in front of it has: an address in the Host header was not looked up, so nobody can have
    rebound it.
    """

    def __init__(self, host: str = "127.0.0.1", allowed: Iterable[str] = (), bound: str = ""):
        own = {_plain(name) for name in (host, bound) if name}
        self.any_address = any(at and at.is_unspecified for at in map(_address, own))
        if self.any_address:
            own.add(_plain(socket.gethostname()))
        self.names = {*_LOCAL, *own, *map(_plain, allowed)}

    def refusal(self, scope: Scope) -> str | None:
        """What is wrong with the Host header, if something is."""
        given = _headers(scope, b"host")
        if len(given) != 1:
            return "a request needs one Host header"
        return self._refusal("Host header", given[0], _name(given[0]))

    def strange(self, scope: Scope) -> str | None:
        """Which header says that another site asks, or that this service is one, if one does.

        `Origin` is of the page that asks. gradio takes the others for its own address.
        """
        host = _headers(scope, b"host")[0].lower()
        for origin in _headers(scope, b"origin"):
            asking = _authority(origin).lower()
            # of a page that lies at an address, that address has to be this service's
            if asking != host and _name(asking) not in self.names:
                return _told("Origin header", origin, _name(asking))
        for header in (b"x-forwarded-host", b"x-gradio-server"):
            for value in _headers(scope, header):
                forwarded = value.partition(",")[0].strip()
                name, title = _name(_authority(forwarded)), header.decode().title()
                if wrong := self._refusal(f"{title} header", forwarded, name):
                    return wrong
        return None

    def _refusal(self, header: str, value: str, name: str | None) -> str | None:
        if name in self.names or (self.any_address and name and _address(name)):
            return None
        return _told(header, value, name)


def check_names(command: str, names: Sequence[str]) -> None:
    """Whether these can be names of `--allow-host`.

    Raises:
        KavaError: one has a port, a path or a pattern, or cannot stand in a Host header.
    """
    for name in names:
        if _name(f"[{name}]" if ":" in name and "[" not in name else name) is None or "]:" in name:
            raise KavaError(
                f"{command}: --allow-host {name!r}: give a name or an address as browsers send it, "
                "without scheme, port, path or '*', such as demo.example.org",
                code="serve.not-a-host",
                key=name,
            )


def _told(header: str, value: str, name: str | None) -> str:
    return (
        f"the {header} says {value[:128]!a}, which is no name of this service; if it is to be "
        f"one, restart it with --allow-host {name or 'NAME'}"
    )


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _authority(value: str) -> str:
    """Host and port of a URL, or of what is host and port already; else nothing."""
    try:
        return urlsplit(value).netloc if "://" in value else value
    except ValueError:
        return ""


def _name(authority: str) -> str | None:
    """Its host without the port, in one form."""
    found = _HOST.fullmatch(authority)
    if found is None:
        return None
    name = _plain(found[1])
    return None if found[1].startswith("[") and _address(name) is None else name


def _plain(name: str) -> str:
    """An address in its usual form, another name in small letters without the root's dot."""
    bare = name.strip("[]").partition("%")[0].lower().removesuffix(".")
    return str(_address(bare) or bare)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
