"""Random models of a few thousand weights, in the layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
CHARACTERS = sorted(
    set(
        "我很好今天压力大晚上睡不着可以把担心的事情写下来一件去看谢谢你愿意说出这并容易觉得什么都做想法是种以偏概全。，！？“”、；"
    )
)


def save_bert(folder: Path, *, n_layers: int = 3, positions: int = 64, **changed: Any) -> Path:
    """A BertModel with a vocabulary of single Chinese characters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        **{
            "hidden_size": 32,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": positions,
            **changed,
        },
    )
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # the usual start is so small that all cosines are nearly 1
    model.save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=positions).save_pretrained(folder)
    return folder


def forget_length(folder: Path) -> Path:
    """Takes `model_max_length` out of a saved tokenizer, as in a folder holding only vocab.txt."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("model_max_length", None)
    path.write_text(json.dumps(config))
    return folder


def save_pieces(path: Path) -> None:
    """A SentencePiece model that holds [CLS] and [SEP], trained on invented sentences."""
    import sentencepiece

    texts = [
        "我今天很好。",
        "你愿意把担心的事情写下来吗？",
        "晚上睡不着，压力很大！",
        "谢谢你说出这件事。",
    ]
    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(texts * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(path.with_suffix("")),
        vocab_size=60,
        hard_vocab_limit=False,
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )


def save_bleurt(folder: Path, *, positions: int = 512) -> tuple[Path, Any, Any]:
    """A checkpoint in the layout of lucadiliello/BLEURT-20; also its encoder and head."""
    from transformers import RemBertConfig, RemBertModel

    folder.mkdir(parents=True, exist_ok=True)
    save_pieces(folder / "spm.model")
    sizes: dict[str, Any] = {
        "vocab_size": 120,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    torch.manual_seed(11)
    encoder = RemBertModel(RemBertConfig(**sizes, input_embedding_size=16)).eval()
    head = torch.nn.Linear(24, 1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(5.0)
    state = {
        "bleurt." + name.replace("embedding_hidden_mapping_in", "embedding_projection"): tensor
        for name, tensor in encoder.state_dict().items()
    }
    state["bleurt.embeddings.position_ids"] = torch.arange(positions).expand((1, -1)).clone()
    state |= {f"classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    described = {"model_type": "bleurt", "embedding_size": 16, "num_labels": 1, **sizes}
    (folder / "config.json").write_text(json.dumps(described))
    return folder, encoder, head
