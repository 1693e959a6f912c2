"""A real drive without shared memory, made of FUSE: what SQLite's WAL cannot use."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def network_drive(folder: Path, *options: str) -> Iterator[Path]:
    """A mount point below `folder`; skips the test where none can be made.

    `options` are bindfs's, such as `--chmod-deny`.
    """
    if shutil.which("bindfs") is None:
        pytest.skip("needs bindfs (apt-get install bindfs) to make a network drive")
    behind, point = folder / "behind", folder / "drive"
    behind.mkdir()
    point.mkdir()
    # direct_io: nothing may be mapped into memory that processes share
    command = ["bindfs", "-f", "-o", "direct_io", *options, str(behind), str(point)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not os.path.ismount(point):
            if server.poll() is not None:
                assert server.stderr is not None
                pytest.skip(f"no FUSE here: {server.stderr.read().strip()}")
            time.sleep(0.01)
        yield point
    finally:
        server.terminate()
        server.wait()
        assert server.stderr is not None
        server.stderr.close()
