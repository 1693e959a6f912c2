"""Stages in order: what is done, what has changed, what a failure and a folder of others mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cbtqa
from cbtqa.errors import ConfigError, DataError, EndpointError, IncompleteRunError, UsageError
from cbtqa.reproduce.pipeline import (
    chosen_stages,
    make_plan,
    reproduce,
    state_of,
    states,
    versions_of,
)
from cbtqa.reproduce.stages import Plan, ReproduceSettings, Stage, Watch, written_whole


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(ReproduceSettings(recipe="cbt-llm", out=tmp_path / "run", smoke=True))


class Verbs:
    """Three stages that write a file each, and the log of those that were run."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.ran, self.settings = root, [], settings
        self.fails = ""

    def stages(self) -> list[Stage]:
        wants = {"build": (), "finetune:a": ("build",), "finetune:b": ("build",)}
        wants |= {"score": ("finetune:a", "finetune:b")}
        return [self._stage(name, needs) for name, needs in wants.items()]

    def _stage(self, name: str, needs: tuple[str, ...]) -> Stage:
        marker = self.root / f"{name.replace(':', '-')}.txt"

        def work(watch: Watch) -> None:
            if name == self.fails:
                raise EndpointError("no answer", hint="start the server")
            self.ran.append(name)
            marker.write_text(f"{name} {self.settings.get(name)}", encoding="utf-8")

        return Stage(name, marker, work, {"given": self.settings.get(name)}, needs)

    def run(self, plan: Plan, only: tuple[str, ...] = (), start: str | None = None) -> list[str]:
        self.ran.clear()
        stages = self.stages()
        reproduce(plan, stages, chosen_stages(stages, only, start), Watch())
        return list(self.ran)


def test_a_finished_stage_is_not_done_again(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    assert verbs.run(plan) == ["build", "finetune:a", "finetune:b", "score"]
    assert verbs.run(plan) == []
    assert [one.state for one in states(plan, verbs.stages())] == ["done"] * 4


def test_a_newer_version_does_no_finished_stage_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs = Verbs(plan.root)
    with monkeypatch.context() as older:
        older.setattr(cbtqa, "__version__", "0.0.1")
        verbs.run(plan, only=("build", "finetune"))
    assert verbs.run(plan) == ["score"]
    assert versions_of(plan.root) == {
        "build": "0.0.1",
        "finetune:a": "0.0.1",
        "finetune:b": "0.0.1",
        "score": cbtqa.__version__,
    }


def test_another_setting_redoes_its_stage_and_those_made_from_it(plan: Plan) -> None:
    Verbs(plan.root).run(plan)
    verbs = Verbs(plan.root, **{"finetune:b": 7})
    found = {one.stage: one.state for one in states(plan, verbs.stages())}
    assert found == {
        "build": "done",
        "finetune:a": "done",
        "finetune:b": "changed",
        "score": "waiting",
    }
    assert verbs.run(plan) == ["finetune:b", "score"]


def test_a_result_that_was_changed_by_hand_is_made_again(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    verbs.run(plan)
    (plan.root / "build.txt").write_text("other", encoding="utf-8")
    assert verbs.run(plan)[0] == "build"


def test_a_stage_that_fails_stops_the_run_and_is_where_it_continues(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    verbs.fails = "finetune:b"
    with pytest.raises(EndpointError) as told:
        verbs.run(plan)
    assert told.value.hint == (
        "stage finetune:b: the same command continues there; start the server"
    )
    verbs.fails = ""
    assert verbs.run(plan) == ["finetune:b", "score"]


def test_a_run_from_a_stage_on_wants_those_before_it_done(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    with pytest.raises(IncompleteRunError, match="score waits for finetune:a, finetune:b"):
        verbs.run(plan, start="score")
    assert verbs.run(plan, only=("build", "finetune:a")) == ["build", "finetune:a"]
    assert verbs.run(plan, start="finetune") == ["finetune:b", "score"]


def test_an_unknown_stage_is_answered_with_the_near_one(plan: Plan) -> None:
    with pytest.raises(UsageError) as told:
        chosen_stages(Verbs(plan.root).stages(), ("finetun",))
    assert "did you mean finetune" in (told.value.hint or "")


def test_a_folder_of_something_else_is_left_alone(plan: Plan) -> None:
    plan.root.mkdir()
    (plan.root / "thesis.docx").touch()
    with pytest.raises(UsageError, match="holds no experiment"):
        Verbs(plan.root).run(plan)
    assert [one.name for one in plan.root.iterdir()] == ["thesis.docx"]


def test_a_smoke_run_and_a_real_one_do_not_share_a_folder(plan: Plan) -> None:
    Verbs(plan.root).run(plan)
    real = make_plan(ReproduceSettings(recipe="cbt-llm", out=plan.root))
    with pytest.raises(UsageError, match="holds a smoke run of cbt-llm"):
        Verbs(plan.root).run(real)


def test_what_is_written_whole_replaces_the_old_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    folder, half = tmp_path / "scores", tmp_path / ".scores.partial"
    half.mkdir()
    (half / "left").touch()
    folder.mkdir()
    (folder / "old").touch()
    written_whole(folder, lambda to: (to / "new").touch())
    assert [one.name for one in folder.iterdir()] == ["new"]
    assert not half.exists()


def test_a_manifest_whose_file_is_missing_ends_no_stage(plan: Plan) -> None:
    from cbtqa.manifest import describe_file, new_manifest, now, write_manifest

    folder = plan.root / "dataset"

    def work(watch: Watch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows").write_text("rows", encoding="utf-8")
        files = (describe_file(folder / "rows", folder),)
        (folder / "rows").unlink()
        write_manifest(folder, new_manifest("dataset", None, now(), files=files))

    stage = Stage("build", folder / "manifest.json", work)
    with pytest.raises(DataError, match="is not as its manifest says"):
        reproduce(plan, [stage], [stage], Watch())
    assert state_of(plan, stage, [stage])[0] == "to do"


def test_a_second_process_is_refused_while_the_first_is_at_it(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    stages = verbs.stages()

    def second(watch: Watch) -> None:
        with pytest.raises(ConfigError, match="is in use by"):
            Verbs(plan.root).run(plan)
        stages[0].marker.write_text("done", encoding="utf-8")

    reproduce(plan, [replace(stages[0], work=second)], [replace(stages[0], work=second)], Watch())
    assert verbs.run(plan)[-1] == "score", "the lock is gone with its run"
    assert not [one.name for one in plan.root.iterdir() if one.name.startswith(".")]


def test_a_failed_stage_leaves_no_lock(plan: Plan) -> None:
    verbs = Verbs(plan.root)
    verbs.fails = "score"
    for _ in range(2):
        with pytest.raises(EndpointError):
            verbs.run(plan)
