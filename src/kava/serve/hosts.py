"""Check the host names under which a service is requested, against DNS rebinding.

A browser lets a page read responses from its own host name. If a stranger's host name is made to
resolve to this machine (DNS rebinding), that page can reach a service that listens here for this
machine only; then only the Host header still contains the stranger's name. Starlette's
TrustedHostMiddleware compares names only as strings. Here, an IP address is compared as an
address, whatever its notation, and the error message says what to do.
"""

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
    """The Host headers that are accepted: this machine's own names and those given explicitly.

    Args:
        host: the address that the service was told to listen on.
        allowed_hosts: additional names, from `--allow-host`.
        bound: the address that the service actually listens on, if known.

    A service that listens on all addresses of the machine accepts any IP address, even one that
    only a router in front of it has: an IP address in the Host header was not looked up in DNS, so
    it cannot be the result of rebinding.
    """

    def __init__(self, host: str = "127.0.0.1", allowed_hosts: Iterable[str] = (), bound: str = ""):
        own = {_normalize(name) for name in (host, bound) if name}
        self.any_address = any(at and at.is_unspecified for at in map(_address, own))
        if self.any_address:
            own.add(_normalize(socket.gethostname()))
        self.names = {*_LOCAL, *own, *map(_normalize, allowed_hosts)}

    def host_error(self, scope: Scope) -> str | None:
        """Return what is wrong with the Host header, or None if it is accepted."""
        values = _headers(scope, b"host")
        if len(values) != 1:
            return "a request must have exactly one Host header"
        return self._host_refusal("Host header", values[0], _name(values[0]))

    def foreign_header(self, scope: Scope) -> str | None:
        """Return the header by which the request comes from another site, or None.

        `Origin` is the site of the page that sends the request. The other headers are those from
        which gradio derives its own address.
        """
        host = _headers(scope, b"host")[0].lower()
        for origin in _headers(scope, b"origin"):
            asking = _authority(origin).lower()
            # If the page's site is an IP address, it must be one of this service's own.
            if asking != host and _name(asking) not in self.names:
                return _unknown_host_message("Origin header", origin, _name(asking))
        for header in (b"x-forwarded-host", b"x-gradio-server"):
            for value in _headers(scope, header):
                forwarded = value.partition(",")[0].strip()
                name, title = _name(_authority(forwarded)), header.decode().title()
                if wrong := self._host_refusal(f"{title} header", forwarded, name):
                    return wrong
        return None

    def _host_refusal(self, header: str, value: str, name: str | None) -> str | None:
        if name in self.names or (self.any_address and name and _address(name)):
            return None
        return _unknown_host_message(header, value, name)


def check_names(command: str, names: Sequence[str]) -> None:
    """Check that these names can be used with `--allow-host`.

    Raises:
        KavaError: a name has a port, a path or a pattern, or cannot be in a Host header.
    """
    for name in names:
        if _name(f"[{name}]" if ":" in name and "[" not in name else name) is None or "]:" in name:
            raise KavaError(
                f"{command}: --allow-host {name!r}: must be a host name or address as browsers "
                "send it, without scheme, port, path or '*', such as demo.example.org",
                code="serve.not-a-host",
                key=name,
            )


def _unknown_host_message(header: str, value: str, name: str | None) -> str:
    return (
        f"the {header} is {value[:128]!a}, which is not a name of this service; to allow it, "
        f"restart the service with --allow-host {name or 'NAME'}"
    )


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _authority(value: str) -> str:
    """Return the host and port of a URL, or a value without a scheme unchanged; "" if invalid."""
    try:
        return urlsplit(value).netloc if "://" in value else value
    except ValueError:
        return ""


def _name(authority: str) -> str | None:
    """Return the normalised host of `authority` without its port, or None if it is not valid."""
    match = _HOST.fullmatch(authority)
    if match is None:
        return None
    name = _normalize(match[1])
    return None if match[1].startswith("[") and _address(name) is None else name


def _normalize(name: str) -> str:
    """Normalise a host: an address to its usual form, a name to lower case without trailing dot."""
    bare = name.strip("[]").partition("%")[0].lower().removesuffix(".")
    return str(_address(bare) or bare)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
