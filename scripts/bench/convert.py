#!/usr/bin/env python3
"""Time and memory of `cbtqa convert` and `cbtqa merge` on a random Baichuan of real width.

    scripts/bench/convert.py                              # 4 layers, 2.5 GiB, shards of 512 MiB
    scripts/bench/convert.py --layers 32 --shard-mib 2048  # all of Baichuan-7B: 40 GiB of disk

The source is one `.bin` in float16, as Baichuan-7B was published. Memory is the peak of anonymous
pages above the start: mapped files are the system's to drop. Wall time depends on the disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from cbtqa.tuning.backbones import find_backbone, load_backbones
from cbtqa.tuning.weights.convert import convert
from cbtqa.tuning.weights.files import describe_base, write_base_record
from cbtqa.tuning.weights.merge import merge
from tests.support import original_checkpoints

GIB, MIB = 1 << 30, 1 << 20
SHAPE = load_backbones()["baichuan"].shape
assert SHAPE is not None
HIDDEN, INNER, VOCAB = SHAPE.hidden, SHAPE.intermediate, SHAPE.vocab
LINEAR = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), ("self_attn", HIDDEN, HIDDEN)),
    **dict.fromkeys(("gate_proj", "up_proj"), ("mlp", INNER, HIDDEN)),
    "down_proj": ("mlp", HIDDEN, INNER),
}


def save_source(folder: Path, layers: int) -> None:
    """A random checkpoint in Baichuan-7B's layout, with a small tokenizer."""
    import torch

    config = dict(SHAPE_KEYS, num_hidden_layers=layers)
    original_checkpoints.save_sentencepiece(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).half()

    def made(*shape: int) -> Any:
        size = torch.Size(shape).numel()
        return block.repeat(size // block.numel() + 1)[:size].reshape(shape).clone()

    tensors = {"model.embed_tokens.weight": made(VOCAB, HIDDEN)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        tensors |= {
            layer + "input_layernorm.weight": made(HIDDEN),
            layer + "self_attn.W_pack.weight": made(3 * HIDDEN, HIDDEN),
            layer + "self_attn.o_proj.weight": made(HIDDEN, HIDDEN),
            layer + "post_attention_layernorm.weight": made(HIDDEN),
            layer + "mlp.gate_proj.weight": made(INNER, HIDDEN),
            layer + "mlp.up_proj.weight": made(INNER, HIDDEN),
            layer + "mlp.down_proj.weight": made(HIDDEN, INNER),
        }
    tensors |= {"model.norm.weight": made(HIDDEN), "lm_head.weight": made(VOCAB, HIDDEN)}
    torch.save(tensors, folder / "pytorch_model.bin")


SHAPE_KEYS: dict[str, Any] = {
    "architectures": ["BaiChuanForCausalLM"],
    "model_type": "baichuan",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": SHAPE.heads,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
}


def save_adapter(folder: Path, base: Path, layers: int) -> None:
    """A random adapter of rank 16 on all linear layers."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": list(LINEAR)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for number in range(layers):
        for name, (block, n_out, n_in) in LINEAR.items():
            module = f"base_model.model.model.layers.{number}.{block}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(16, n_in) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(n_out, 16) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    write_base_record(folder, describe_base(find_backbone(base)))


def measured(what: str, work: Callable[[], object]) -> None:
    """Runs the work and prints its wall time, CPU time and memory."""
    peak, is_running = 0.0, True

    def watch() -> None:
        nonlocal peak
        while is_running:
            peak = max(peak, _anonymous_gib())
            time.sleep(0.05)

    before, wall, cpu = _anonymous_gib(), time.monotonic(), time.process_time()
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    is_running = False
    watcher.join()
    print(
        f"{what:<8} {time.monotonic() - wall:6.1f} s wall {time.process_time() - cpu:6.1f} s CPU "
        f"{peak - before:5.2f} GiB above {before:.2f}",
        flush=True,
    )


def _anonymous_gib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / GIB
    raise SystemExit("no RssAnon in /proc/self/status: Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--shard-mib", type=int, default=512)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source").mkdir()
        save_source(folder / "source", given.layers)
        size = (folder / "source" / "pytorch_model.bin").stat().st_size
        print(f"source: {size / GIB:.2f} GiB, shards of {given.shard_mib} MiB")
        shard = given.shard_mib * MIB
        measured("convert", lambda: convert(folder / "source", folder / "base", shard_bytes=shard))
        save_adapter(folder / "adapter", folder / "base", given.layers)
        words: dict[str, Any] = {"base": str(folder / "base"), "shard_bytes": shard}
        measured("merge", lambda: merge(folder / "adapter", folder / "merged", **words))


if __name__ == "__main__":
    main()
