"""Causal classes of the installed transformers: a handful here, all of them in scripts/bench/zoo.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbtqa.tuning.backbones import find_backbone
from tests.zoo.lives import live
from tests.zoo.table import RESULTS, render_table, splice
from tests.zoo.tiny import read_table, registered_types, tiny_config

DOCS = Path(__file__).parents[2] / "docs/backbones.md"


@pytest.mark.filterwarnings("ignore")  # transformers' and peft's, on classes of all ages
@pytest.mark.parametrize(
    ("model_type", "ending"),
    [
        ("qwen3_moe", "packed"),  # experts
        ("qwen3_5_text", "padded"),  # linear attention in three layers of four
        ("gpt2", "packed"),  # weights stored the other way round
    ],
)
def test_a_class_trains_resumes_merges_and_writes_the_same_text(
    model_type: str, ending: str, tmp_path: Path
) -> None:
    life = live(model_type, tmp_path)
    assert (life.ending, life.merges) == (ending, ""), life.sentence
    if ending == "padded":
        assert "flash-linear-attention" in life.sentence


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
