"""The lines that serve a merged model, and GGUF through llama.cpp's own converter."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from cbtqa.errors import ConfigError, DataError, UsageError

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
"""Environment variable with the folder of llama.cpp's sources."""


def serving_lines(folder: Path) -> dict[str, str]:
    """What to type to serve a merged folder, by program."""
    quoted, gguf = shlex.quote(str(folder)), shlex.quote(f"{folder}.gguf")
    return {
        "vllm": f"vllm serve {quoted} --served-model-name {shlex.quote(folder.name)}",
        "llama.cpp": f"python {CONVERTER} {quoted} --outfile {gguf} --outtype f16 && "
        f"llama-server -m {gguf}",
    }


def find_converter(llama_cpp: Path | None) -> Path:
    """llama.cpp's converter script.

    Args:
        llama_cpp: its source folder; None: the one LLAMA_CPP names.

    Raises:
        ConfigError: no folder given, or the script is not in it.
    """
    given = llama_cpp or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given is None or not (given / CONVERTER).is_file():
        raise ConfigError(
            f"--gguf needs llama.cpp's {CONVERTER}"
            + (f", which is not in {given}" if given else ""),
            hint="git clone https://github.com/ggml-org/llama.cpp, then --llama-cpp llama.cpp (or "
            f"{VARIABLE}=llama.cpp)",
        )
    return given / CONVERTER


def write_gguf(folder: Path, out: Path, converter: Path, outtype: str = "f16") -> None:
    """Runs the converter on a merged folder; its talk goes to stderr.

    Raises:
        UsageError: `out` exists.
        DataError: the converter failed, or wrote something else than GGUF.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another --gguf")
    partial = out.with_name(f".{out.name}.part")
    words = [sys.executable, converter, folder, "--outfile", partial, "--outtype", outtype]
    try:
        done = subprocess.run(list(map(str, words)), stdout=sys.stderr, check=False)
        if done.returncode != 0 or not partial.is_file():
            raise DataError(
                f"{CONVERTER} ended with {done.returncode}; the merged model itself is whole",
                where=str(folder),
            )
        with partial.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise DataError("not GGUF", where=str(out))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
