"""An app of `cbtqa.web` on a port of its own, and the browser that looks at it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cbtqa.web.server import allowed_hosts, make_server, tcp_listener

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Served:
    """The app in a thread."""

    def __init__(
        self,
        make_app: Callable[[Collection[str]], Any],
        port: int = 0,
        read_timeout_s: float = 60.0,
    ) -> None:
        self.listener = tcp_listener()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self.server = make_server(make_app(allowed_hosts(self.port)), read_timeout_s)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @property
    def address(self) -> str:
        """Where the app is."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Ends the server."""
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A browser, or a skipped test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
