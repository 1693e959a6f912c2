"""Recipes: what is in the shipped ones, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.errors import ConfigError, UsageError
from cbtqa.reproduce.recipe import STAGES, read_recipe, shipped_recipes
from cbtqa.settings import resolve

BASE = """
id: mine
title: {en: Mine, zh: 我的}
backbones: {qwen: null}
"""


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_value_of_a_shipped_recipe_says_where_it_is_from(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.id == name
    unmarked = [(stage, key) for stage, key, one in recipe.choices() if not one.mark or not one.why]
    assert not unmarked


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_values_of_a_shipped_recipe_are_settings_that_the_verbs_take(name: str) -> None:
    recipe = read_recipe(name)
    for stage, model in STAGES[recipe.kind].items():
        if model is not None and stage in recipe.stages:
            own = {"run": Path("dataset"), "to": "a/b"} if stage == "publish" else {}
            resolve(model, flags={**recipe.settings(stage), **own}, environ={})


def test_the_four_recipes_are_shipped() -> None:
    assert shipped_recipes() == ["cbt-llm", "cbtqa-modern", "tahir-act", "tahir-cbt"]


def test_everything_wrong_in_a_recipe_is_told_at_once_with_the_near_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = BASE.replace("qwen: null", "qwenn: null") + (
        "finetun: {rank: 8}\n"
        "generate: {max_new_token: 5, adapter: here}\n"
        "rate: {n: {value: 3, mark: papr}}\n"
        "build: {acknowledge_disclosure: true}\n"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as told:
        read_recipe(str(path))
    lines = str(told.value).splitlines()
    assert len(lines) == 6
    for words in (
        "unknown key 'finetun', did you mean 'finetune'?",
        "backbones.qwenn: no backbone 'qwenn'",
        "generate.max_new_token: unknown setting 'max_new_token', did you mean 'max_new_tokens'?",
        "generate.adapter: is filled in by the pipeline itself",
        "rate.n: unknown mark 'papr', did you mean 'paper'?",
        "build.acknowledge_disclosure: is said on the command line",
    ):
        assert any(words in line for line in lines), words


def test_a_recipe_of_ones_own_needs_no_marks(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(BASE + "generate: {limit: 3}\n", encoding="utf-8")
    recipe = read_recipe(str(path), ["generate.seed=7", "finetune.rank = 4"])
    assert recipe.settings("generate") == {"limit": 3, "seed": 7}
    assert recipe.settings("finetune") == {"rank": 4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("generate.limit", "expected STAGE.SETTING=VALUE"),
        ("generat.limit=3", "unknown stage 'generat', did you mean 'generate'"),
        ("generate.limitt=3", "unknown setting 'limitt', did you mean 'limit'"),
        ("convert.out=3", "this stage has no settings"),
    ],
)
def test_a_change_of_a_value_is_checked_as_the_recipe_is(change: str, words: str) -> None:
    with pytest.raises((ConfigError, UsageError), match=words):
        read_recipe("cbt-llm", [change])


def test_an_unknown_recipe_is_answered_with_the_near_one() -> None:
    with pytest.raises(UsageError) as told:
        read_recipe("cbt-lm")
    assert "did you mean cbt-llm?" in (told.value.hint or "")
