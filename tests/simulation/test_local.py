"""Models on this machine: the same words whatever shares their batch, and an end with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.llm.limits import Limits
from cbtqa.records import Session
from cbtqa.simulation.playing.players import RunLimits
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.sessions import StudyFolder
from tests.support.sessions import study_of
from tests.support.tiny_models import write_tiny_model

PROMPT = """---
id: short
version: 1
language: en
variables: [intake, course, format, ending, opening]
output: text
source: invented for this test
---

# system
$intake $course $format $ending

# user
$opening
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, and a short prompt beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "short.md").write_text(PROMPT)
    return write_tiny_model(folder / "base", max_position_embeddings=4096)


def _play(base: Path, out: Path, in_flight: int = 8, **changes: Any) -> list[Session]:
    player = {"backbone": str(base), "temperature": 0.8, "max_tokens": 10, "extra": {"top_k": 50}}
    arms = [{"name": f"arm{n}", "therapist": player} for n in range(2)]
    plain: dict[str, Any] = {
        "arms": arms,
        "prompt": str(base.parent / "short.md"),
        "turns": {"min": 1, "max": 1},
        "cut_replies": "keep",
        "end_token": False,
    }
    limits = RunLimits(Limits(in_flight=in_flight))
    result = run_study(study_of(**(plain | changes)), out, limits=limits)
    return list(result.folder.read_sessions())


def test_a_reply_depends_on_its_seed_and_not_on_its_batch(base: Path, tmp_path: Path) -> None:
    alone = _play(base, tmp_path / "a", in_flight=1)
    together = _play(base, tmp_path / "b", in_flight=8)
    assert [one.turns for one in alone] == [one.turns for one in together]
    by_arm = {arm: [one.turns for one in alone if one.arm == arm] for arm in ("arm0", "arm1")}
    assert by_arm["arm0"] == by_arm["arm1"], "one model under two names, the same seeds"
    said = {turn.text for one in alone for turn in one.turns if turn.role == "therapist"}
    assert len(said) == 2, "every patient is another seed"


def test_a_prompt_over_the_models_context_ends_the_session_as_such(tmp_path: Path) -> None:
    (tmp_path / "short.md").write_text(PROMPT)
    small = write_tiny_model(tmp_path / "base", max_position_embeddings=64)
    with pytest.raises(IncompleteRunError, match=r"therapist: .*context holds 64: context"):
        _play(small, tmp_path / "s")
    sessions = StudyFolder(tmp_path / "s").read_sessions()
    assert {one.stop_reason for one in sessions} == {"context"}


def test_settings_that_only_servers_know_and_missing_models_are_refused(
    base: Path, tmp_path: Path
) -> None:
    for player, error, message in (
        ({"backbone": str(base), "extra": {"min_p": 0.1}}, ConfigError, "min_p is not known"),
        ({"backbone": str(base), "stop": ["x"]}, ConfigError, "stop is not known"),
        ({"adapter": str(tmp_path / "none")}, DataError, "no adapter here"),
    ):
        arms = [{"name": "a", "therapist": player}]
        with pytest.raises(error, match=message):
            _play(base, tmp_path / "s", arms=arms)
