"""`cbtqa env` says what an issue report needs and never a key."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import cbtqa
from cbtqa.cli.env import _NO_USERS_EXTRA, describe_environment
from cbtqa.cli.main import main
from cbtqa.llm.endpoint import OWN_KEY, preset_file

VARIABLES = [*(preset.key_env for preset in preset_file().presets.values()), OWN_KEY, "HF_TOKEN"]
SECRET = "sk-a1b2c3d4-never-show-this"


@pytest.mark.parametrize("words", [["env"], ["env", "--json"]])
def test_a_key_in_the_environment_never_appears(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*VARIABLES, "CBTQA_JUDGE_KEY", "CBTQA_MODEL"]:
        monkeypatch.setenv(name, SECRET)
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert SECRET not in shown.out + shown.err and SECRET[:8] not in shown.out + shown.err
    assert all(name in shown.out for name in VARIABLES)
    assert "CBTQA_MODEL" in shown.out


def test_keys_are_told_as_set_or_not() -> None:
    found = describe_environment({"OPENAI_API_KEY": SECRET, "DEEPSEEK_API_KEY": " "})
    keys = found["keys"]
    assert keys["openai"] == {"variable": "OPENAI_API_KEY", "is_set": True}
    assert not keys["deepseek"]["is_set"] and not keys["any URL"]["is_set"]


def test_the_object_holds_versions_cards_fonts_and_folders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(SystemExit):
        main(["env", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["cbtqa"] == cbtqa.__version__
    packages = {one["name"]: one for one in found["packages"]}
    assert packages["pydantic"]["version"] == version("pydantic")
    assert packages["ray"]["extras"] == ["cluster"] and "pytest" not in packages
    assert set(found["cards"]) & {"cards", "why_none"}
    assert found["fonts"]["missing_slices"] == [] and found["fonts"]["embedded_characters"] > 6000
    cache = next(one for one in found["folders"] if one["what"] == "Hugging Face cache")
    assert cache["path"] == "~/.cache/huggingface/hub" and not cache["exists"]
    assert cache["free_bytes"] > 0
    assert str(tmp_path) not in json.dumps(found["folders"])


def test_what_is_not_installed_comes_with_its_install_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sys.modules["cbtqa.cli.env"]._version  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "cbtqa.cli.env._version", lambda name: None if name == "peft" else real(name)
    )
    with pytest.raises(SystemExit):
        main(["env"])
    assert "pip install 'cbtqa[qlora]'" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_an_extra_is_a_users_in_both_readmes_or_no_users_here(page: str) -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (root / page).read_text(encoding="utf-8").split("|---|---|\n")[-1].split("\n\n")[0]
    missing = {
        name
        for name in project["optional-dependencies"]
        if name != "all" and not re.search(f"`{name}`", table)
    }
    assert missing == set(_NO_USERS_EXTRA) - {"all"}
