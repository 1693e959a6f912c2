"""Processes of their own for tests that kill one or need several at once.

Torch and transformers take seconds to load: they are loaded once, into the process that forks these.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import peft  # noqa: F401 - loaded ahead
import torch  # noqa: F401 - loaded ahead
import transformers  # noqa: F401 - loaded ahead

from cbtqa.cli import finetune  # noqa: F401 - loaded ahead
from cbtqa.cli.main import _run
from cbtqa.tuning.training import finetune as training  # noqa: F401 - loaded ahead
from cbtqa.tuning.weights import cache  # noqa: F401 - loaded ahead


def children() -> ForkServerContext:
    """Where processes are forked from one that has loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def start_program(
    folder: Path, runs: list[list[str]], env: dict[str, str], n_processes: int = 1
) -> list[BaseProcess]:
    """The program in a folder, several commands one after another, divided among processes.

    Of more than one each has what `torchrun` sets; what they say goes to `said-RANK.txt`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": n_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(n_processes):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank} if n_processes > 1 else {}
        more = env | {name: str(value) for name, value in own.items()}
        child = children().Process(target=_program, args=(folder, rank, runs, more))
        child.start()
        started.append(child)
    return started


def _program(folder: Path, rank: int, runs: list[list[str]], env: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    said = os.open(folder / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.exit(max(_run(words, True) for words in runs))


def run_at_once(
    target: Callable[..., None], arguments: list[tuple[object, ...]]
) -> list[int | None]:
    """Calls a function in so many processes at the same time: their exit codes."""
    at_once = [children().Process(target=target, args=one) for one in arguments]
    for process in at_once:
        process.start()
    for process in at_once:
        process.join()
    return [process.exitcode for process in at_once]
