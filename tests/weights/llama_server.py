"""A llama.cpp server on loopback, as a program: prints its address once it listens.

python tests/weights/llama_server.py MODEL.gguf NAME
"""

from __future__ import annotations

import sys
import time

import xllamacpp

CONTEXT, SLOTS = 4096, 2
"""Tokens of one request with its reply, and requests at a time."""


def main(model: str, name: str) -> None:
    """Serves until it is ended."""
    words = xllamacpp.CommonParams()
    words.model.path = model
    words.n_ctx, words.n_parallel = CONTEXT * SLOTS, SLOTS
    words.cpuparams.n_threads = words.cpuparams_batch.n_threads = 1
    words.port = 0
    words.use_jinja = True
    words.model_alias = {name}
    server = xllamacpp.Server(words)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:3])
