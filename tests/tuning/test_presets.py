"""Presets as a layer of settings, and settings that do not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.errors import ConfigError
from cbtqa.settings import Resolved, resolve
from cbtqa.tuning.settings import (
    MARKS,
    FinetuneSettings,
    read_preset,
    resolve_preset,
    shipped_presets,
)
from cbtqa.tuning.training.prepare import check_settings

FOLDER = Path(__file__).parents[2] / "cbtqa/tuning/presets"


def _resolved(**flags: Any) -> Resolved[FinetuneSettings]:
    return resolve_preset(resolve(FinetuneSettings, flags=flags, environ={}))


@pytest.mark.parametrize("name", shipped_presets())
def test_every_value_of_a_shipped_preset_says_what_it_rests_on(name: str) -> None:
    rows = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, row in rows.items():
        assert row["mark"] in MARKS, key
        assert row["mark"] != "assumed" or row["why"], key
    assert f"--preset {name}" in (FOLDER / f"{name}.yaml").read_text() or name == "modern"
    assert _resolved(preset=name).values.preset == name


def test_the_defaults_are_the_modern_preset() -> None:
    plain = FinetuneSettings()
    for name, (value, _) in read_preset("modern").items():
        assert getattr(plain, name) == value


def test_the_paper_preset_marks_card_summary_and_assumed() -> None:
    found = _resolved(preset="paper")
    origins = found.origins
    assert origins["schedule"].startswith("preset paper: summary")
    assert origins["chat_format"].startswith("preset paper: card")
    assert origins["learning_rate"].startswith("preset paper: assumed")
    told = (found.values.rank, found.values.alpha, found.values.dropout, found.values.batch_size)
    assert told == (8, 32, 0.1, 16)


def test_a_flag_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    found = _resolved(preset="paper", rank=4)
    assert (found.values.rank, found.origins["rank"]) == (4, "--rank")
    assert found.values.learning_rate == 5e-5
    assert found.origins["n_samples"] == "default"


def test_a_preset_of_ones_own_may_be_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rank: 12\nepochs: {value: 2, mark: measured, why: enough}\n")
    found = _resolved(preset=str(path))
    assert (found.values.rank, found.origins["rank"]) == (12, "mine.yaml")
    assert found.origins["epochs"] == "mine.yaml: measured, enough"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ranks: 4\n", "unknown setting 'ranks'"),
        ("rank: {value: 4, mark: guessed}\n", "mark is 'guessed'"),
        ("rank: many\n", "rank: Input should be a valid integer"),
        ("- 3\n", "key: value"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_bad_preset_is_told_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        _resolved(preset=str(path))
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        _resolved(preset="papper")
    assert "tahir-act-orpo" in str(caught.value.hint)


def test_settings_that_do_not_fit_are_all_told_at_once(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    found = _resolved(data=rows, mode="cot", early_stopping=2, objective="orpo", loss_on="text")
    with pytest.raises(ConfigError) as caught:
        check_settings(found)
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert "--mode" in message and "--early-stopping" in message and "--loss-on" in message


def test_fewer_examples_a_step_than_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 processes"):
        check_settings(_resolved(batch_size=2), n_processes=4)
