"""Settings come from four places, the later winning, and every value knows where from."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from cbtqa.errors import ConfigError
from cbtqa.settings import Fallback, Settings, panels_of, resolve


class Demo(Settings):
    seed: int = Field(0, description="Seed.")
    name: str = Field("a", description="Name.")
    share: float = Field(0.5, ge=0, le=1, description="Share.")


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nname: b\nshare: 0.1\n")
    found = resolve(
        Demo,
        file=file,
        flags={"share": 0.3, "name": None},
        environ={"CBTQA_NAME": "c", "CBTQA_SHARE": "0.2"},
    )
    assert found.values == Demo(seed=1, name="c", share=0.3)
    assert found.origins == {"seed": f"{file}:1", "name": "CBTQA_NAME", "share": "--share"}


def test_every_bad_setting_is_listed_at_once_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# a comment\nsed: 7\nshare: 2\n")
    with pytest.raises(ConfigError) as caught:
        resolve(Demo, file=file, flags={}, environ={"CBTQA_SEED": "many"})
    message = str(caught.value)
    assert f"{file}:2: unknown setting 'sed', did you mean 'seed'?" in message
    assert f"{file}:3: share" in message and "CBTQA_SEED: seed" in message


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n"])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        resolve(Demo, file=file, environ={})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert resolve(Demo, file=file, environ={}).values == Demo()


def test_a_wrong_keyword_is_reported_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'sede', did you mean 'seed'"):
        resolve(Demo, flags={"sede": 1}, environ={})


def test_a_fallback_is_looked_for_only_where_nobody_gave_a_value() -> None:
    fallbacks = {
        "name": Fallback(lambda values: "found", "default: newest"),
        "seed": Fallback(lambda values: 9, "default: newest", unless=("name",)),
    }
    found = resolve(Demo, flags={}, environ={}, fallbacks=fallbacks)
    assert found.values == Demo(name="found", seed=9), "what is found stops no other fallback"
    assert found.origins["name"] == "default: newest"
    found = resolve(Demo, flags={"name": "given"}, environ={}, fallbacks=fallbacks)
    assert found.values == Demo(name="given") and found.origins["seed"] == "default"


class Model(Settings):
    panel: ClassVar[str] = "Model"
    model: str = ""


class Server(Settings):
    panel: ClassVar[str] = "Endpoint"
    endpoint: str = ""
    model: str = ""


class Pace(Server):
    panel: ClassVar[str] = "Endpoint"
    in_flight: int = 64


class Verb(Model, Pace):
    data: str = ""
    in_flight: int = 8


def test_a_panel_is_named_once_per_class_and_another_default_moves_nothing() -> None:
    assert list(panels_of(Verb).items()) == [
        ("data", None),
        ("model", "Model"),
        ("endpoint", "Endpoint"),
        ("in_flight", "Endpoint"),
    ]
    assert set(panels_of(Verb)) == set(Verb.model_fields)
