"""The command `kava serve`: load a model and start the service."""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kava.errors import KavaError, install
from kava.serve.hosts import Hosts, check_names
from kava.serve.limits import Limits


@dataclass(frozen=True)
class Address:
    """Where the service listens, who may use it, and which additional host names it accepts."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_no_key: bool = False
    allow_hosts: Sequence[str] = ()


def check(address: Address) -> None:
    """Check the address: without a key, only this machine can reach the service by default.

    Anybody who can reach a service without a key may use it.

    Raises:
        KavaError: an address other than loopback without a key, a key that cannot be sent in a
            header, or an invalid host name.
    """
    check_names("serve", address.allow_hosts)
    key = address.api_key
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise KavaError(
            "serve: the API key must be printable ASCII and not empty",
            code="serve.unfit-key",
            key="--api-key",
        )
    if key is None and not address.allow_no_key and not is_loopback(address.host):
        raise KavaError(
            f"serve: {address.host} can be reached from other machines; set --api-key (or the "
            "environment variable KAVA_API_KEY), or allow access without a key by --allow-no-key",
            code="serve.no-key",
            key="--api-key",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address of this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(command: str, host: str, port: int) -> socket.socket:
    """Return a socket bound to this address, not yet listening; port 0 selects any free port.

    Raises:
        KavaError: the address is in use, or does not belong to this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except (OSError, UnicodeError) as error:
        bound.close()
        raise _address_error(command, host, port, error) from None
    return bound


def listen(command: str, bound: socket.socket) -> None:
    """Start listening on a bound socket, so that clients can connect.

    Raises:
        KavaError: another program bound this address at the same time and already listens there.
    """
    try:
        bound.listen()
    except OSError as error:
        raise _address_error(command, *bound.getsockname()[:2], error) from None


def _address_error(command: str, host: str, port: int, error: Exception) -> KavaError:
    why = getattr(error, "strerror", None) or error
    in_use = getattr(error, "errno", None) == errno.EADDRINUSE
    return KavaError(
        f"{command}: {host}, port {port}: {why}; choose another address with --host or --port",
        code="serve.address-in-use" if in_use else "serve.address-not-possible",
        key=f"{host}:{port}",
    )


def serve(
    run: str,
    address: Address,
    limits: Limits,
    name: str | None,
    backbone: str | None,
    console: Console,
    merge: bool = False,
    revision: str | None = None,
    dtype: str | None = None,
) -> None:
    """Load a run and answer requests until interrupted.

    Raises:
        KavaError: the address needs a key or is in use, the run cannot be loaded, or required
            libraries are not installed.
    """
    check(address)
    try:
        import uvicorn

        from kava.serve.app import create_app
        from kava.serve.connection import configure_server
    except ImportError as error:
        raise KavaError(
            f"serve requires additional libraries ({error.name}); {install('serve')}",
            code="serve.not-installed",
            key=error.name,
        ) from None
    from kava.reasoning.open import open_reasoner, print_device

    with bind("serve", address.host, address.port) as listening:
        reasoner = open_reasoner(run, backbone, dtype, revision)
        if merge:
            reasoner.merge()
        print_device(reasoner, limits.batch_size, console)
        name = name or Path(run).resolve().name
        hosts = Hosts(address.host, address.allow_hosts, listening.getsockname()[0])
        app = create_app(reasoner, name, limits, address.api_key, hosts)
        listen("serve", listening)
        shown = f"[{address.host}]" if ":" in address.host else address.host
        console.print(
            f"{name} ({reasoner.recipe.method}) at http://{shown}:{address.port}/v1, "
            f"{'with' if address.api_key else 'without'} an API key; Ctrl-C stops",
            highlight=False,
            markup=False,
        )
        with suppress(KeyboardInterrupt):  # the server has already shut down cleanly
            uvicorn.Server(configure_server(app, limits)).run(sockets=[listening])
