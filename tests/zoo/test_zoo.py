"""Causal classes of the installed transformers: a handful here, all of them in scripts/bench/zoo.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from cbtqa.errors import ConfigError
from cbtqa.settings import resolve
from cbtqa.tuning.attention import reason_to_pad
from cbtqa.tuning.backbones import find_backbone
from cbtqa.tuning.budget.counting import build_on_meta, count_shape
from cbtqa.tuning.loading import add_adapter, load_base
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.finetune import finetune
from tests.support.tiny_models import write_rows, write_tiny_model
from tests.zoo.lives import live
from tests.zoo.table import RESULTS, render_table, splice
from tests.zoo.tiny import read_table, registered_types, tiny_config

DOCS = Path(__file__).parents[2] / "docs/backbones.md"


@pytest.mark.filterwarnings("ignore")  # transformers' and peft's, on classes of all ages
@pytest.mark.parametrize(
    ("model_type", "ending"),
    [
        ("qwen3_5_text", "padded"),  # linear attention in three layers of four
        ("gpt2", "packed"),  # weights stored the other way round
        ("deepseek_v3", "packed"),  # latent attention, experts
        ("bamba", "padded"),  # state-space layers beside attention
    ],
)
def test_a_class_trains_resumes_merges_and_writes_the_same_text(
    model_type: str, ending: str, tmp_path: Path
) -> None:
    life = live(model_type, tmp_path)
    assert (life.ending, life.merges) == (ending, ""), life.sentence
    if ending == "padded":
        assert "flash-linear-attention" in life.sentence


def test_a_model_that_answers_to_more_than_token_ids_is_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    life = live("gemma4_assistant", tmp_path)  # drafts for another model, whose states it reads
    assert life.ending == "refused"
    assert "tiny cannot be tuned: it gives no logits for token ids alone" in life.sentence


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "left_out"),
    [
        ("bamba", {"out_proj"}),  # its kernels read the weight and pass an adapter by
        ("mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("deepseek_v4", {"o_a_proj"}),  # multiplies blocks of its input
    ],
)
def test_layers_that_an_adapter_would_not_reach_get_none(
    model_type: str, left_out: set[str]
) -> None:
    model = build_on_meta(tiny_config(model_type), LoraConfig(r=2), torch.float32)
    adapted = {name for name, one in model.named_modules() if hasattr(one, "lora_A")}
    linear = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert adapted and left_out <= linear
    assert left_out.isdisjoint(name.rpartition(".")[2] for name in adapted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type",
    [
        "gemma4_text",  # heads of two widths
        "falcon",  # knows attention by names of its own
    ],
)
def test_a_dry_run_counts_classes_whose_layers_differ(model_type: str) -> None:
    count = count_shape(tiny_config(model_type), LoraConfig(r=2), dtype=torch.float32)
    assert count.n_trainable > 0 and count.plain.saved_per_token > 0


def test_positions_that_follow_from_padding_are_foretold_as_padded_batches() -> None:
    reason = reason_to_pad(tiny_config("xlm-roberta"))
    assert reason is not None and "positions follow from the padding token" in reason
    assert reason_to_pad(tiny_config("qwen3")) is None


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (
            ImportError(
                "Timm requires the timm library.\nInstall it with pip: `pip install timm`."
            ),
            "needs a library that is not installed: Timm requires the timm library.",
            "pip install timm",
        ),
        (AttributeError("'XConfig' object has no attribute 'dropout'"), "cannot be loaded", None),
    ],
)
def test_a_class_that_cannot_be_made_is_refused_in_a_sentence(
    error: Exception, words: str, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    folder = write_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(ConfigError, match=words) as caught:
        load_base(find_backbone(folder), "fp32")
    assert caught.value.hint == hint


@pytest.mark.filterwarnings("ignore")
def test_default_adapters_reach_the_projections_of_linear_attention(tmp_path: Path) -> None:
    config = tiny_config("qwen3_5_text")
    config.architectures = ["Qwen3_5ForCausalLM"]
    config.save_pretrained(tmp_path)
    reached = set(find_backbone(tmp_path).target_modules)
    assert {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "q_proj"} <= reached


def test_the_exceptions_name_registered_types_only() -> None:
    assert set(read_table()["types"]) <= set(registered_types())


def test_the_table_in_the_docs_is_the_one_of_the_last_run() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert splice(text, render_table()) == text, "run scripts/make_zoo_table"


def test_no_class_of_the_last_run_ended_unexpectedly() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    assert rows
    assert [row["model_type"] for row in rows if row["ending"] == "unexpected"] == []


def test_adapters_that_do_not_fit_a_layer_are_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misfitting(*given: Any) -> Any:
        adapted = add_adapter(*given)
        layer = next(one for one in adapted.modules() if hasattr(one, "lora_B"))
        layer.lora_B["default"].weight = torch.nn.Parameter(torch.zeros(3, 2))
        return adapted

    monkeypatch.setattr("cbtqa.tuning.training.prepare.add_adapter", misfitting)
    data = write_rows(tmp_path / "rows.jsonl", 2)
    words = {"data": data, "backbone": str(write_tiny_model(tmp_path / "tiny")), "rank": 2}
    words |= {"out": tmp_path / "run", "max_steps": 1, "batch_size": 2, "precision": "fp32"}
    with pytest.raises(ConfigError, match=r"tiny cannot be tuned with adapters on .*q_proj"):
        finetune(resolve(FinetuneSettings, flags=words))
