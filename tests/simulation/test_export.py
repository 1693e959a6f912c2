"""Training rows: the prompt as it is served, no patient on two sides, nothing unfit to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import write_jsonl
from cbtqa.manifest import read_manifest
from cbtqa.records import Turn
from cbtqa.settings import resolve
from cbtqa.simulation.export import Exported, ExportSettings, export_sessions
from cbtqa.simulation.lint import lint
from cbtqa.simulation.playing.messages import end_token, read_therapist
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.sessions import StudyFolder, split_sessions
from tests.support.endpoint import ScriptedEndpoint, Seen, ok, refusal
from tests.support.sessions import QUICK, asked_study, session_of, study_of


def _export(folder: Path, out: Path, **flags: Any) -> Exported:
    return export_sessions(
        resolve(ExportSettings, flags={"sessions": folder, "out": out, **flags}, environ={})
    )


def _rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_hold_the_very_messages_that_the_server_was_sent(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda seen: ok(f"Answer {len(seen.body['messages'])}.")) as server:
        run_study(asked_study(server.url), tmp_path / "s", limits=QUICK)
        served = [seen.body["messages"] for seen in server.requests]
    _export(tmp_path / "s", tmp_path / "e")
    rows = [
        row
        for split in ("train", "validation", "test")
        for row in _rows(tmp_path / f"e/sft/{split}.jsonl")
    ]
    assert [row["prompt"] for row in rows] == served
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": f"Answer {len(prompt)}."}] for prompt in served
    ]


def test_with_reasoning_the_history_is_still_the_one_served(tmp_path: Path) -> None:
    said = "<thinking>\nOne thing.\n</thinking>\n<answer>\nGo on.\n</answer>"
    with ScriptedEndpoint(ok(said)) as server:
        arm = {"name": "a", "reasoning": "cot", "therapist": {"endpoint": server.url, "model": "m"}}
        run_study(asked_study(server.url, arms=[arm]), tmp_path / "s", limits=QUICK)
        served = [seen.body["messages"] for seen in server.requests]
    _export(tmp_path / "s", tmp_path / "e")
    rows = _rows(tmp_path / "e/sft/train.jsonl")
    assert served[: len(rows)] and all(row["prompt"] in served for row in rows)
    assert {row["completion"][0]["content"] for row in rows} == {said}
    _export(tmp_path / "s", tmp_path / "p", reasoning="plain")
    plain = _rows(tmp_path / "p/sft/train.jsonl")
    assert {row["completion"][0]["content"] for row in plain} == {"Go on."}
    assert all("<thinking>" not in json.dumps(row) for row in plain)


def test_no_patient_and_no_conversation_stands_in_two_splits(tmp_path: Path) -> None:
    study = study_of(patients={"draw": "cbt", "n": 10}, replicates=2)
    run_study(study, tmp_path / "s", limits=QUICK)
    made = _export(tmp_path / "s", tmp_path / "e", validation=0.2, test=0.2, messages=True)
    metas = {
        split: _rows(tmp_path / f"e/sft/{split}.meta.jsonl")
        for split in ("train", "validation", "test")
    }
    patients = {split: {row["profile_id"] for row in rows} for split, rows in metas.items()}
    assert {split: len(found) for split, found in patients.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    assert len(set.union(*patients.values())) == 10
    assert all(len(rows) == made.manifest.counts["sft"][split] for split, rows in metas.items())
    assert lint(tmp_path / "e").is_clean


def test_lint_finds_a_leak_that_was_put_in(tmp_path: Path) -> None:
    run_study(study_of(patients={"draw": "cbt", "n": 4}), tmp_path / "s", limits=QUICK)
    _export(tmp_path / "s", tmp_path / "e")
    for name in ("train.jsonl", "train.meta.jsonl"):
        test = tmp_path / "e/sft" / name.replace("train", "test")
        first = (tmp_path / "e/sft" / name).read_text().splitlines()[0]
        test.write_text(test.read_text() + first + "\n")
    codes = {finding.code for finding in lint(tmp_path / "e").findings}
    assert codes == {"leak_patients", "leak_answers"}


def test_lint_finds_patients_of_the_study_to_come_among_the_rows(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    _export(tmp_path / "s", tmp_path / "e")
    own = tmp_path / "own.yaml"
    own.write_text("id: x\napproach: cbt\narms: [{name: a, therapist: {scripted: plain}}]\n")
    (finding,) = lint(tmp_path / "e", against=own).findings
    assert finding.code == "leak_study" and finding.severity == "error"


def test_a_single_patient_is_split_by_session_and_that_is_said() -> None:
    sessions = [session_of("a", "b", id=f"s{n}") for n in range(10)]
    split_of, by = split_sessions(sessions, validation=0.1, test=0.1, seed=0)
    assert by == "session" and sorted(split_of.values()).count("train") == 8
    again, _ = split_sessions(sessions[::-1], validation=0.1, test=0.1, seed=0)
    assert again == split_of
    other, _ = split_sessions(sessions, validation=0.1, test=0.1, seed=1)
    assert other != split_of


def test_marked_turns_are_left_out_and_counted_but_stay_in_the_history(tmp_path: Path) -> None:
    run_study(study_of(end_token=False), tmp_path / "s", limits=QUICK)
    folder = StudyFolder(tmp_path / "s")
    sessions = list(folder.read_sessions())
    marked = sessions[0].turns[1].model_copy(update={"marks": ("not_accepted",)})
    sessions[0] = sessions[0].model_copy(
        update={"turns": (sessions[0].turns[0], marked, *sessions[0].turns[2:])}
    )
    write_jsonl(folder.sessions_path, sessions)
    counts = _export(tmp_path / "s", tmp_path / "e").manifest.counts
    assert counts["dropped"] == {"marked_not_accepted": 1}
    kept = _export(tmp_path / "s", tmp_path / "k", keep_marked=True).manifest.counts
    assert sum(kept["sft"].values()) == sum(counts["sft"].values()) + 1 == 4 * 6
    prompts = json.dumps([_rows(path) for path in sorted((tmp_path / "e/sft").glob("*n.jsonl"))])
    assert json.dumps(marked.text)[1:-1] in prompts


def _with_words(folder: StudyFolder, place: int, text: str) -> None:
    """Puts other words at a place (from 0) of the first session."""
    first, *others = folder.read_sessions()
    turns = list(first.turns)
    turns[place] = turns[place].model_copy(update={"text": text})
    first = first.model_copy(update={"turns": tuple(turns)})
    write_jsonl(folder.sessions_path, [first, *others])


@pytest.mark.parametrize(
    ("place", "text", "dropped"),
    [
        (3, "*nods* Go on.", {"marked_narration": 1}),
        (2, "(sighs) I don't know.", {"answers_narration": 1}),
        (3, "As your patient, I feel low.", {"marked_wrong_speaker": 1, "after_wrong_speaker": 4}),
        (2, "I'm your therapist, sit down.", {"after_wrong_speaker": 5}),
        (11, "That is so.<|im_end|>", {"marked_machine_text": 1}),
    ],
)
def test_turns_that_are_none_and_what_follows_from_them_are_left_out_with_their_reason(
    tmp_path: Path, place: int, text: str, dropped: dict[str, int]
) -> None:
    run_study(study_of(end_token=False), tmp_path / "s", limits=QUICK)
    _with_words(StudyFolder(tmp_path / "s"), place, text)
    counts = _export(tmp_path / "s", tmp_path / "e").manifest.counts
    assert counts["dropped"] == dropped
    kept = _export(tmp_path / "s", tmp_path / "k", keep_marked=True).manifest.counts
    assert kept["dropped"] == {} and sum(kept["sft"].values()) == 4 * 6
    assert sum(counts["sft"].values()) == 4 * 6 - sum(dropped.values())


def test_a_whole_session_ends_before_its_first_marked_turn(tmp_path: Path) -> None:
    run_study(study_of(end_token=False), tmp_path / "s", limits=QUICK)
    _with_words(StudyFolder(tmp_path / "s"), 5, "*leans back* And then?")
    counts = _export(tmp_path / "s", tmp_path / "e", messages=True, validation=0, test=0)
    assert counts.manifest.counts["dropped"]["session_ends_at_a_mark"] == 1
    lengths = sorted(
        sum(message["role"] == "assistant" for message in row["messages"])
        for row in _rows(tmp_path / "e/messages/train.jsonl")
    )
    assert lengths == [2, 6, 6, 6]
    assert "leans back" not in (tmp_path / "e/messages/train.jsonl").read_text()


def test_only_a_session_that_ended_teaches_the_end_token(tmp_path: Path) -> None:
    run_study(study_of(turns={"min": 2, "max": 25}), tmp_path / "s", limits=QUICK)
    _export(tmp_path / "s", tmp_path / "e", validation=0, test=0)
    rows, metas = _rows(tmp_path / "e/sft/train.jsonl"), _rows(tmp_path / "e/sft/train.meta.jsonl")
    last = {(meta["session_id"]): meta["turn"] for meta in metas}
    for row, meta in zip(rows, metas, strict=True):
        text = row["completion"][0]["content"]
        assert text.endswith(end_token()) == (meta["turn"] == last[meta["session_id"]])
    run_study(study_of(turns={"min": 2, "max": 3}), tmp_path / "t", limits=QUICK)
    _export(tmp_path / "t", tmp_path / "f", validation=0, test=0)
    assert all(
        end_token() not in row["completion"][0]["content"]
        for row in _rows(tmp_path / "f/sft/train.jsonl")
    )


def test_rows_take_the_form_of_the_study_in_which_the_model_will_play(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    serve = tmp_path / "serve.yaml"
    serve.write_text(
        "id: x\napproach: act\nend_token: false\narms:\n"
        "- {name: one, therapist: {scripted: plain}}\n- {name: two, therapist: {scripted: plain}}\n"
    )
    with pytest.raises(ConfigError, match="several arms: one, two"):
        _export(tmp_path / "s", tmp_path / "e", serve=serve)
    _export(tmp_path / "s", tmp_path / "e", serve=serve, arm="two", validation=0, test=0)
    system = _rows(tmp_path / "e/sft/train.jsonl")[0]["prompt"][0]["content"]
    assert "acceptance and commitment" in system and "Never suggest an end" in system


def test_rows_over_the_context_are_left_out_not_cut(tmp_path: Path) -> None:
    with ScriptedEndpoint(ok("Tell me what happened then. " * 20)) as server:
        study = asked_study(server.url, context_tokens=9000)
        run_study(study, tmp_path / "s", limits=QUICK)
    serve = tmp_path / "serve.yaml"
    serve.write_text(
        "id: x\napproach: cbt\ncontext_tokens: 1900\nturns: {min: 2, max: 6}\n"
        "arms: [{name: a, therapist: {scripted: plain}}]\n"
    )
    counts = _export(tmp_path / "s", tmp_path / "e", serve=serve).manifest.counts
    assert 0 < counts["dropped"]["over_the_context"] < 6


# --- pairs ---------------------------------------------------------------------------------------


def test_pairs_answer_one_prompt_are_all_messages_and_are_paid_once(tmp_path: Path) -> None:
    def script(seen: Seen) -> Any:
        return ok(f"{seen.body['model']} {len(seen.body['messages'])}")

    with ScriptedEndpoint(script) as server:
        side = {"endpoint": server.url}
        pairs = {"chosen": {**side, "model": "strong"}, "rejected": {**side, "model": "untuned"}}
        study = study_of(patients={"ready": "test", "n": 4}, pairs=pairs)
        run_study(study, tmp_path / "s", limits=QUICK)
        made = _export(tmp_path / "s", tmp_path / "e")
        n_rows = sum(made.manifest.counts["sft"].values())
        assert server.n_paid == 2 * n_rows
        again = _export(tmp_path / "s", tmp_path / "e")
        assert server.n_paid == 2 * n_rows, "pairs are not paid twice"
        assert again.manifest.files == made.manifest.files
    sft, orpo = _rows(tmp_path / "e/sft/train.jsonl"), _rows(tmp_path / "e/orpo/train.jsonl")
    assert [row["prompt"] for row in orpo] == [row["prompt"] for row in sft]
    for row in orpo:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["chosen"] == [{"role": "assistant", "content": f"strong {len(row['prompt'])}"}]
        assert row["rejected"][0]["content"].startswith("untuned")


def test_pairs_without_two_different_usable_sides_are_counted(tmp_path: Path) -> None:
    def script(seen: Seen) -> Any:
        n = len(seen.body["messages"])
        if seen.body["model"] == "strong":
            return ok("The same.")
        return refusal() if n == 2 else ok("The same.") if n == 4 else ok("Other.")

    with ScriptedEndpoint(script) as server:
        side = {"endpoint": server.url}
        pairs = {"chosen": {**side, "model": "strong"}, "rejected": {**side, "model": "untuned"}}
        run_study(study_of(pairs=pairs, end_token=False), tmp_path / "s", limits=QUICK)
        counts = _export(tmp_path / "s", tmp_path / "e").manifest.counts
    # 4 sessions of 6 turns: the first of each is refused, the second says the same on both sides
    assert counts["dropped"] == {"both_sides_alike": 4, "rejected_refusal": 4}
    assert sum(counts["orpo"].values()) == 16


def test_the_corpus_itself_can_be_the_chosen_side(tmp_path: Path) -> None:
    study = study_of(
        pairs={"rejected": {"scripted": "lecturing"}},
        arms=[{"name": "a", "therapist": {"scripted": "attentive"}, "reasoning": "cot"}],
    )
    run_study(study, tmp_path / "s", limits=QUICK)
    _export(tmp_path / "s", tmp_path / "e", validation=0, test=0)
    sft, orpo = _rows(tmp_path / "e/sft/train.jsonl"), _rows(tmp_path / "e/orpo/train.jsonl")
    assert [row["chosen"] for row in orpo] == [row["completion"] for row in sft]
    assert all("<thinking>" in row["rejected"][0]["content"] for row in orpo)


# --- what is said and refused --------------------------------------------------------------------


def test_the_manifest_names_the_trl_releases_and_rules_are_no_source(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    made = _export(tmp_path / "s", tmp_path / "e")
    counts = read_manifest(tmp_path / "e").counts
    assert counts["trl"]["range"] == ">=1.10,<2"
    assert "trl.experimental.orpo" in counts["trl"]["orpo"]
    assert any("no source for training" in warning for warning in made.warnings)


def test_a_folder_without_rows_or_of_something_else_is_refused(tmp_path: Path) -> None:
    run_study(study_of(turns={"min": 1, "max": 1}), tmp_path / "s", limits=QUICK)
    folder = StudyFolder(tmp_path / "s")
    silent = [one.model_copy(update={"turns": one.turns[:1]}) for one in folder.read_sessions()]
    write_jsonl(folder.sessions_path, silent)
    with pytest.raises(DataError, match="no training row"):
        _export(tmp_path / "s", tmp_path / "e")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        _export(tmp_path / "s", tmp_path / "mine")


def test_sessions_with_adjacent_speakers_become_no_rows(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    folder = StudyFolder(tmp_path / "s")
    sessions = list(folder.read_sessions())
    twice = (*sessions[0].turns, Turn(role="therapist", text="And one more thing."))
    sessions[0] = sessions[0].model_copy(update={"turns": twice})
    write_jsonl(folder.sessions_path, sessions)
    counts = _export(tmp_path / "s", tmp_path / "e").manifest.counts
    assert counts["dropped"] == {"turns_do_not_alternate": sessions[0].n_therapist_turns}


def test_what_a_row_teaches_is_read_back_as_it_was_said(tmp_path: Path) -> None:
    from cbtqa.llm.chat import Reply

    arms = [{"name": "a", "therapist": {"scripted": "present"}, "reasoning": "cot"}]
    run_study(study_of(arms=arms), tmp_path / "s", limits=QUICK)
    _export(tmp_path / "s", tmp_path / "e", validation=0, test=0)
    said = [
        (turn.text, turn.reasoning)
        for one in StudyFolder(tmp_path / "s").read_sessions()
        for turn in one.turns
        if turn.role == "therapist"
    ]
    read = []
    for row in _rows(tmp_path / "e/sft/train.jsonl"):
        spoken = read_therapist(Reply(row["completion"][0]["content"]), "cot")
        read.append((spoken.text, spoken.reasoning))  # type: ignore[union-attr]
    assert read == said
