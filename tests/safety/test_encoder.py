"""The encoder beside the built-in screen: tuned, saved, opened, and only ever raising a grade."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

import cbtqa
from cbtqa.cli.main import _run
from cbtqa.errors import ConfigError, MissingExtraError
from cbtqa.files import write_jsonl
from cbtqa.llm.checked_files import CheckSettings, ScreenSettings, check_file, screen_texts
from cbtqa.safety.answers import check_in_both
from cbtqa.safety.encoder import TUNED_NAME, Encoder, Tuned, open_encoder, sentence_spans
from cbtqa.safety.evaluation import evaluate_file
from cbtqa.safety.screen import screen, screen_each
from cbtqa.settings import resolve
from cbtqa.simulation.judging.run import SessionJudgeSettings, judge_sessions
from cbtqa.simulation.lint import lint
from cbtqa.simulation.playing.run import run_study
from cbtqa.tuning.answering.chat import ChatSettings, answer_safely, open_opinions, open_speaker
from cbtqa.tuning.answering.questions import read_asked
from cbtqa.tuning.answering.settings import GenerateSettings
from scripts.encoder_fit import (
    ENCODER_ALONE,
    Fit,
    fit_answer_weighing,
    fit_weighing,
    unfitted_head,
)
from tests.safety.tiny_encoder import DANGER, HARMLESS, save_encoder, tune
from tests.support.endpoint import ScriptedEndpoint, ok
from tests.support.sessions import QUICK, session_of, study_of

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party deprecations, not ours


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, list[float]]:
    folder = save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return folder, tune(folder, monkeypatch)


@pytest.fixture
def folder(tuned) -> str:
    return str(tuned[0])


def test_it_learns_the_sentence_that_decides_and_raises_a_text_for_it(tuned, folder) -> None:
    losses = tuned[1]
    assert np.mean(losses[-9:]) < np.mean(losses[:9]) / 3, "it learns"
    text = f"{HARMLESS[1]}。{DANGER}。{HARMLESS[0]}。"
    assert screen(text).risk == "none"
    found = screen(text, model=open_encoder(folder))
    assert found.risk == "explicit"
    (hit,) = found.hits
    assert (hit.rule, hit.text) == ("encoder.explicit", f"{DANGER}。")
    assert text[hit.start : hit.end] == hit.text
    assert screen(f"{HARMLESS[1]}。{HARMLESS[0]}。", model=open_encoder(folder)).risk == "none"


def test_it_never_lowers_what_the_rules_decide_nor_another_danger(folder) -> None:
    texts = ["我想自杀。", "他昨晚又掐我脖子，我报过警。", "", " \n", "😀", "我想死，真的想死。"]
    rank = {"none": 0, "concern": 1, "explicit": 2}
    for text, both in screen_each(texts, str, model=open_encoder(folder)):
        own = screen(text)
        assert rank[both.risk] >= rank[own.risk]
        assert {one.kind for one in own.dangers} <= {one.kind for one in both.dangers}
        assert both.hits[: len(own.hits)] == own.hits


def test_it_reads_answers_and_is_weighed_with_the_built_in_model(folder) -> None:
    said = f"{HARMLESS[1]}。{DANGER}。{HARMLESS[0]}。"
    assert check_in_both(said, "none") == ()
    (problem,) = check_in_both(said, "none", model=open_encoder(folder))
    assert (problem.rule, problem.text) == ("medicine", f"{DANGER}。")
    assert said[problem.start : problem.end] == problem.text
    assert cbtqa.check_answer(said, model=folder).problems == (problem,)
    harmless = f"{HARMLESS[1]}。{HARMLESS[0]}。"
    assert check_in_both(harmless, "none", model=open_encoder(folder)) == ()
    assert check_in_both("", "none", model=open_encoder(folder)) == ()


def test_an_answer_is_weighed_by_the_odds_of_both_models() -> None:
    head = replace(unfitted_head(1), weighing={"zh": np.array([1.0, 0.5, 0.5])})
    found = head.weigh(0.9, 0.2, "zh")
    assert np.log(found / (1 - found)) == pytest.approx(1 + (np.log(9) - np.log(4)) / 2)
    assert unfitted_head(1).weigh(0.9, 0.2, "en") == pytest.approx(0.9), "the built-in model alone"


def test_both_models_are_weighed_together(folder) -> None:
    opened = open_encoder(folder)
    assert opened is not None
    given = [0.9, 0.95, 0.1, 0.2]
    alone = replace(opened.tuned, weighing=ENCODER_ALONE)
    assert alone.weigh(given, "zh") == pytest.approx((0.1, 0.2)), "the encoder alone"
    built_in = np.array([[0.0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    half = np.array([[0.0, 0.5, 0, 0.5, 0], [1, 0, 0.5, 0, 0.5]])
    tuned = replace(opened.tuned, weighing={"zh": built_in, "en": half})
    assert tuned.weigh(given, "zh") == pytest.approx((0.9, 0.95))
    explicit, flagged = tuned.weigh(given, "en")
    assert explicit == pytest.approx(0.5)
    assert np.log(flagged / (1 - flagged)) == pytest.approx(1 + (np.log(19) - np.log(4)) / 2)
    assert all(0 < one < 1 for one in tuned.weigh([0.0, 1.0, 0.0, 1.0], "en"))


def test_a_finding_of_the_built_in_model_may_be_outweighed_by_the_encoder(folder) -> None:
    said = "日子定下来了，心一下子就松了，不用再熬了。"
    own, both = screen(said), screen(said, model=open_encoder(folder))
    assert own.risk == "explicit" and own.hits[-1].rule == "model.explicit"
    assert both.risk != "explicit" and both.hits == own.hits[:-1]


def test_where_both_models_find_nothing_a_grade_of_the_rules_is_one_lower(folder) -> None:
    said = "笑不活了，我妈把我的面膜当酸菜汤包扔了。"
    own, both = screen(said), screen(said, model=open_encoder(folder))
    (hit,) = (hit for hit in own.hits if hit.risk != "none")
    assert (own.risk, hit.rule) == ("explicit", "not_live.done")
    assert both.risk == "concern"
    assert both.hits == (replace(hit, risk="concern", outcome="outweighed"),)


def test_a_batch_gives_what_each_text_gives_alone_long_ones_included(folder) -> None:
    model = open_encoder(folder)
    texts = [DANGER, *HARMLESS, f"{'，'.join(HARMLESS * 4)}。{DANGER}", "", f"{DANGER}，" * 30]
    together = [found for _, found in screen_each(texts, str, model=model)]
    assert together == [screen(text, model=model) for text in texts]
    assert [one.risk for one in together] == [
        *["explicit"],
        *["none"] * 5,
        "explicit",
        "none",
        "explicit",
    ]


def test_sentences_are_cut_in_both_languages_and_keep_their_places() -> None:
    text = "药都收好了。 Dr.X said 3.5 mg. It's fine!\n真的"
    cut = [text[start:end] for start, end in sentence_spans(text)]
    assert cut == ["药都收好了。", "Dr.X said 3.5 mg.", "It's fine!", "真的"]


def test_other_weights_of_the_same_shape_are_refused(folder, tmp_path) -> None:
    other = save_encoder(tmp_path / "other", seed=8)
    (other / TUNED_NAME).write_bytes(Path(folder, TUNED_NAME).read_bytes())
    with pytest.raises(ConfigError, match="not the weights of tiny"):
        open_encoder(str(other))


def test_an_encoder_that_nothing_is_tuned_on_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"nothing is fitted for .*plain"):
        open_encoder(str(save_encoder(tmp_path / "plain")))


def test_a_damaged_file_and_a_missing_folder_are_told(folder, tmp_path) -> None:
    broken = save_encoder(tmp_path / "broken")
    (broken / TUNED_NAME).write_bytes(Path(folder, TUNED_NAME).read_bytes()[:900])
    with pytest.raises(ConfigError, match="damaged"):
        open_encoder(str(broken))
    with np.load(Path(folder, TUNED_NAME)) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "weighing"}
    np.savez(broken / TUNED_NAME, **kept)
    with pytest.raises(ConfigError, match=r"another version: weighing") as caught:
        open_encoder(str(broken))
    assert "fit it anew" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="not a folder with a model"):
        open_encoder(str(tmp_path / "none"))


def test_a_fit_goes_on_from_an_earlier_one(folder) -> None:
    start = Tuned.read(Path(folder, TUNED_NAME).read_bytes())
    encoder = Encoder(folder)
    fit = Fit(encoder, list(HARMLESS), 9, layers=(1, 2), n_frozen=1, start=start)
    found = fit.fitted()
    np.testing.assert_array_equal(found["mean"], start.mean)
    np.testing.assert_allclose(found["out"][0], start.out[0], rtol=1e-6)
    for name, pair in start.additions.items():
        for own, known in zip(found["additions"][name], pair, strict=True):
            np.testing.assert_allclose(own, known, rtol=1e-6)


def test_the_weights_of_both_models_are_found() -> None:
    generator = np.random.default_rng(0)
    odds = generator.normal(0, 3, (4000, 4))
    languages = ["zh" if n % 2 else "en" for n in range(len(odds))]
    sums = odds @ [0.5, 0, 1.0, 0] + np.array([1.0 if one == "zh" else -1.0 for one in languages])
    grades = 2 * (generator.random(len(odds)) < 1 / (1 + np.exp(-sums)))
    weighing = fit_weighing(odds, list(grades), languages, minimize)
    np.testing.assert_allclose(weighing["zh"][0], [1, 0.5, 0, 1, 0], atol=0.15)
    np.testing.assert_allclose(weighing["en"][0], [-1, 0.5, 0, 1, 0], atol=0.15)


def test_the_weights_of_the_odds_of_answers_are_found_again() -> None:
    rng = np.random.default_rng(0)
    odds, languages = rng.normal(0, 3, (4000, 2)), ["zh", "en"] * 2000
    sums = np.where(np.array(languages) == "zh", 1.0, -1.0) + odds @ [0.5, 1.0]
    is_unsafe = (rng.random(4000) < 1 / (1 + np.exp(-sums))).tolist()
    weighing = fit_answer_weighing(odds, is_unsafe, languages, minimize)
    np.testing.assert_allclose(weighing["zh"], [1, 0.5, 1], atol=0.15)
    np.testing.assert_allclose(weighing["en"], [-1, 0.5, 1], atol=0.15)


def test_what_was_tuned_survives_its_file(tuned, tmp_path) -> None:
    content = (tuned[0] / TUNED_NAME).read_bytes()
    first = Tuned.read(content)
    first.save(tmp_path / "again.npz")
    second = Tuned.read((tmp_path / "again.npz").read_bytes())
    assert first.limits == second.limits and first.base == "tiny"
    np.testing.assert_array_equal(first.hidden[0], second.hidden[0])
    np.testing.assert_array_equal(first.answers.out[0], second.answers.out[0])
    np.testing.assert_array_equal(first.answers.weighing["en"], second.answers.weighing["en"])


def test_without_torch_the_extra_is_named(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError) as caught:
        open_encoder.__wrapped__(folder)
    assert "neural" in (caught.value.hint or "")


def questions(path: Path) -> Path:
    texts = [f"{HARMLESS[n]}。" for n in range(5)] + [f"{DANGER}。", "我想自杀。"]
    write_jsonl(path, ({"id": str(n), "question": text} for n, text in enumerate(texts)))
    return path


def test_a_file_is_screened_and_compared_with_it(folder, tmp_path) -> None:
    path = questions(tmp_path / "q.jsonl")
    assert screen_texts(ScreenSettings(file=path)).n_by_risk["explicit"] == 1
    survey = screen_texts(ScreenSettings(file=path, screen_model=folder))
    assert (survey.n_by_risk["explicit"], survey.n_by_rule["encoder.explicit"]) == (2, 1)
    assert survey.screen_model.startswith("tiny@")
    gold = tmp_path / "gold.jsonl"
    write_jsonl(gold, [{"text": DANGER, "risk": "explicit"}, {"text": HARMLESS[0], "risk": "none"}])
    report = evaluate_file(gold, screen_model=folder)
    assert report.explicit.recall.value == 1.0 and "+tiny@" in report.signature
    assert evaluate_file(gold).explicit.recall.value == 0.0


def test_a_build_grades_by_it_and_a_resumed_one_refuses_another(folder, tmp_path) -> None:
    path, out = questions(tmp_path / "q.jsonl"), tmp_path / "built"
    built = cbtqa.build_dataset(path, out=out, screen_model=folder)
    assert built.manifest.counts["risk"]["explicit"] == 2
    assert built.manifest.counts["screen_model"].startswith("tiny@")
    with pytest.raises(ConfigError, match="screen_model"):
        cbtqa.build_dataset(path, out=out)
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="screen_model"):
        cbtqa.build_dataset(path, out=out)
    dropped = cbtqa.build_dataset(path, out=tmp_path / "x", screen_model=folder, crisis="drop")
    assert dropped.manifest.counts["rejected"] == {"crisis_dropped": 2}


def test_chat_gives_help_where_it_sees_explicit_danger(folder) -> None:
    opinions = open_opinions(ChatSettings(screen_model=folder))
    speaker = open_speaker(ChatSettings(screen_model=folder))
    assert answer_safely(speaker, f"{DANGER}。").risk == "none"
    turn = answer_safely(speaker, f"{DANGER}。", opinions)
    assert turn.risk == "explicit" and turn.text is None and turn.help


def test_answers_are_held_to_the_grade_that_it_gives_their_question(folder, tmp_path) -> None:
    answers = tmp_path / "answers.jsonl"
    write_jsonl(answers, [{"question": f"{DANGER}。", "answer": "慢慢来，先照顾好自己。"}])
    assert check_file(CheckSettings(answers=answers)).n_unsafe == 0
    found = check_file(CheckSettings(answers=answers, screen_model=folder))
    assert found.n_by_problem == {"no_help_route": 1}


def test_generate_grades_questions_and_prompts_by_it(folder, tmp_path) -> None:
    prompts = tmp_path / "p.jsonl"
    write_jsonl(prompts, [{"prompt": f"{DANGER}。"}, {"prompt": f"{HARMLESS[0]}。"}])
    for path in (questions(tmp_path / "q.jsonl"), prompts):
        for model, n_explicit in ((None, 0), (folder, 1)):
            settings = GenerateSettings(data=path, endpoint=("http://x",), screen_model=model)
            asked = read_asked(settings, "answer", None)
            said = [one.risk for one in asked.items if DANGER in one.question]
            assert said.count("explicit") == n_explicit


def test_data_check_counts_risk_by_it(folder, tmp_path, capsys) -> None:
    path = questions(tmp_path / "q.jsonl")
    words = ["data", "check", str(path), "--json", "--screen-model", folder]
    assert _run(words, False) == 0
    assert json.loads(capsys.readouterr().out)["risk"]["explicit"] == 2


def test_sessions_are_marked_by_it_when_they_are_played(folder, tmp_path) -> None:
    with ScriptedEndpoint(ok(f"{DANGER}。")) as server:
        study = study_of(patient={"endpoint": server.url, "model": "m"}, turns={"min": 1, "max": 2})
        plain = run_study(study, tmp_path / "plain", limits=QUICK)
        read = run_study(study, tmp_path / "read", limits=QUICK, screen_model=folder)
    assert "screen_model" not in plain.counts
    assert read.counts["screen_model"].startswith("tiny@")
    for result, is_marked in ((plain, False), (read, True)):
        turns = [turn for one in result.folder.read_sessions() for turn in one.turns]
        said = [turn for turn in turns if turn.role == "patient" and DANGER in turn.text]
        assert said and all(("risk" in turn.marks) == is_marked for turn in said)
        assert not any("risk" in turn.marks for turn in turns if turn not in said)


def test_transcripts_are_checked_and_judged_by_it(folder, tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    write_jsonl(path, [session_of(f"{DANGER}。", "Tell me about your week, please.")])
    assert "no_referral" not in {one.code for one in lint(path).findings}
    assert "no_referral" in {one.code for one in lint(path, screen_model=folder).findings}
    values = []
    for name, model in (("plain", None), ("read", folder)):
        flags = {"sessions": path, "instrument": ("session-safety",), "rules": True}
        flags |= {"out": tmp_path / name, "screen_model": model}
        judge_sessions(resolve(SessionJudgeSettings, flags=flags, environ={}))
        (ratings,) = (tmp_path / name).rglob("ratings.jsonl")
        rows = [json.loads(line) for line in ratings.read_text(encoding="utf-8").splitlines()]
        values.append({row["item"]: row["value"] for row in rows})
    assert values[0]["danger"] is None, "no danger was seen: not applicable"
    assert values[1]["danger"] == 0


def test_importing_the_package_and_the_settings_loads_no_torch() -> None:
    code = (
        "import sys, cbtqa, cbtqa.dataset.settings, cbtqa.safety.screen;"
        "cbtqa.screen('我想自杀'); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_what_is_shipped_is_whole_and_small() -> None:
    path = Path(cbtqa.__file__).parent / "safety" / TUNED_NAME
    shipped = Tuned.read(path.read_bytes())
    assert shipped.base == "intfloat/multilingual-e5-small"
    assert len(shipped.probe) == 2 * 384 and len(shipped.out[1]) == 27
    assert all(0.2 < limit <= 1 for pair in shipped.limits.values() for limit in pair)
    assert len(shipped.answers.out[1]) == 13
    assert path.stat().st_size < 2_000_000


@pytest.mark.weights
def test_with_real_weights_roundabout_intent_is_raised_and_its_harmless_twin_is_not() -> None:
    given = os.environ.get("MULTILINGUAL_E5_SMALL")
    if not given:
        pytest.skip("MULTILINGUAL_E5_SMALL names a folder of intfloat/multilingual-e5-small")
    model = open_encoder(given)
    pairs = {
        "花都托给楼下阿姨了，猫也送走了，等这场雪下完，我就不用再醒过来了。": "explicit",
        "花都托给楼下阿姨了，猫也寄养了，下周我们全家去哈尔滨看雪，回来再接。": "none",
    }
    assert {text: one.risk for text, one in screen_each(pairs, str, model=model)} == pairs


def test_the_python_face_takes_a_folder(folder) -> None:
    assert cbtqa.screen(DANGER).risk == "none"
    assert cbtqa.screen(DANGER, model=folder).risk == "explicit"


def test_a_damaged_file_of_the_package_is_not_laid_at_the_users_door(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TUNED_NAME).write_bytes(b"not a zip file")
    monkeypatch.setattr("cbtqa.safety.encoder.files", lambda package: tmp_path)
    given = save_encoder(tmp_path / "plain")
    with pytest.raises(ConfigError, match="of the installed cbtqa is damaged") as told:
        open_encoder(str(given))
    assert str(given) not in str(told.value) and "install cbtqa again" in (told.value.hint or "")
