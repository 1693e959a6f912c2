"""Decoding by name: greedy, as the released model's card, as the model's own file says."""

from __future__ import annotations

import json
from pathlib import Path

from cbtqa.settings import resolve
from cbtqa.tuning.answering.generate import prepare, sampling_of
from cbtqa.tuning.answering.settings import GenerateSettings
from tests.support.tiny_models import write_tiny_model

OWN = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 77}


def _run(tmp_path: Path, **flags: object) -> GenerateSettings:
    """The settings that a run decodes with."""
    base = tmp_path / "base"
    if not base.exists():
        write_tiny_model(base)
        (base / "generation_config.json").write_text(json.dumps({**OWN, "eos_token_id": 2}))
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "睡不好。"}\n', encoding="utf-8")
    words = {"data": asked, "model": str(base), "device": "cpu", "out": tmp_path / "out", **flags}
    return prepare(resolve(GenerateSettings, flags=words).values, lambda words: None).settings


def test_the_default_inherits_nothing(tmp_path: Path) -> None:
    settings = _run(tmp_path)
    drawn = (settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens)
    assert drawn == (0.0, 1.0, None, 1024)


def test_card_is_256_tokens_and_sampling_and_flags_win(tmp_path: Path) -> None:
    settings = _run(tmp_path, decoding="card")
    assert (settings.max_new_tokens, settings.temperature, settings.top_k) == (256, 1.0, 50)
    changed = _run(tmp_path, decoding="card", temperature=0.3)
    assert (changed.max_new_tokens, changed.temperature) == (256, 0.3)


def test_model_is_what_its_own_file_says_and_flags_win(tmp_path: Path) -> None:
    settings = _run(tmp_path, decoding="model")
    drawn = (settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens)
    assert drawn == (0.6, 0.9, 50, 77)
    described = sampling_of(settings).described()
    assert (described["temperature"], described["max_tokens"]) == (0.6, 77)
    assert _run(tmp_path, decoding="model", max_new_tokens=12).max_new_tokens == 12


def test_at_an_endpoint_model_leaves_the_temperature_to_the_server() -> None:
    flags = {"endpoint": ("http://127.0.0.1:9/v1",), "model": "m", "decoding": "model"}
    assert sampling_of(resolve(GenerateSettings, flags=flags).values).temperature is None
    told = resolve(GenerateSettings, flags={**flags, "temperature": 0.2}).values
    assert sampling_of(told).temperature == 0.2
