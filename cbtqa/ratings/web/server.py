"""Runs the form: one process, loopback unless told otherwise, nothing about requests in any log."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

from cbtqa.errors import MissingExtraError, UsageError
from cbtqa.ratings.store import Store, network_filesystem
from cbtqa.ratings.study import StudyFolder
from cbtqa.ratings.web.app import create_app

LOOPBACK = "127.0.0.1"


def check_place(path: Path) -> None:
    """Refuses a study on a network share, where the locks of the store do not hold.

    Raises:
        UsageError: the study lies on such a share.
    """
    kind = network_filesystem(path)
    if kind is not None:
        raise UsageError(
            f"{path} lies on a network share ({kind}); ratings could be lost there",
            hint="copy the study to a local disk and serve it from there",
        )


def lan_address() -> str:
    """This machine's address in the local network, as far as it can be told without traffic."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # a documentation address; a datagram socket sends nothing
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


def allowed_hosts(port: int, names: Iterable[str] = ()) -> set[str]:
    """Values of the Host header that are answered: loopback, and these names."""
    hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
    for name in names:
        try:
            is_v6 = ipaddress.ip_address(name).version == 6
        except ValueError:
            is_v6 = False
        shown = f"[{name}]" if is_v6 else name
        hosts |= {f"{shown}:{port}", shown} if port in (80, 443) else {f"{shown}:{port}"}
    return hosts


def tcp_listener() -> socket.socket:
    """A socket to listen on.

    The protocol is named, because asyncio turns Nagle's delay (40 ms per save) off only where it
    finds it named.
    """
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def serve(
    folder: StudyFolder, store: Store, *, host: str, port: int, names: Iterable[str] = ()
) -> None:
    """Serves until interrupted.

    Args:
        names: further names under which browsers reach this machine, such as behind a tunnel.

    Raises:
        MissingExtraError: uvicorn is not installed.
        UsageError: the port is taken.
    """
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise MissingExtraError("uvicorn", "rate") from None
    app = create_app(folder, store, allowed_hosts(port, names))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    with tcp_listener() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot use {host}:{port}: {error.strerror}", hint="--port") from None
        uvicorn.Server(config).run(sockets=[listener])
