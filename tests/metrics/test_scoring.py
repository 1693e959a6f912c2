"""From files to a report: reading, laying side by side, counting, refusing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.comparison import CompareSettings, compare
from cbtqa.metrics.evaluation import CEILING, FLOOR, LEFT_OUT, score_lists
from cbtqa.metrics.pairs import is_cut
from cbtqa.metrics.score_folder import write_folder
from cbtqa.metrics.scoring import Scored, ScoreSettings, score
from cbtqa.records import STEP_NAMES
from cbtqa.settings import resolve
from tests.support.dataset_folder import finish

ANSWERS = {
    str(number): f"第{number}个问题让你很难受，我能理解。不妨每天散步{number}分钟。"
    for number in range(12)
}
PREDICTED = {
    key: text.replace("难受", "辛苦") if int(key) % 3 else f"第{key}个问题很难，加油。"
    for key, text in ANSWERS.items()
}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSONL, CSV or Parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def predictions(folder: Path, texts: Mapping[str, str | None], name: str = "sys.jsonl") -> Path:
    """A file of predictions in the project's own columns."""
    rows = [{"question_id": key, "text": text} for key, text in texts.items()]
    return write(folder / name, rows)


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    return write(
        tmp_path / "ref.jsonl", [{"id": key, "answer": text} for key, text in ANSWERS.items()]
    )


def run(*files: Path, ref: Path | None = None, **settings: Any) -> Scored:
    """Scores with few resamples."""
    return score(ScoreSettings(predictions=files, ref=ref, **{"bootstrap": 50, **settings}))


def values(scored: Scored, system: str) -> dict[str, float | None]:
    """Metric to value of one system."""
    return {one.metric: one.value for one in scored.report.scores if one.system == system}


def test_a_file_of_any_format_gives_the_same_scores(tmp_path: Path, ref: Path) -> None:
    rows = [{"question_id": key, "text": text} for key, text in PREDICTED.items()]
    found = [
        values(run(write(tmp_path / name, rows), ref=ref), "sys")
        for name in ("sys.jsonl", "sys.csv", "p/sys.parquet")
    ]
    assert found[0]["bleu_zh"] is not None
    assert 30 < found[0]["bleu_zh"] < 100
    assert found[0] == found[1] == found[2]


def test_a_built_dataset_gives_its_test_split(tmp_path: Path) -> None:
    rows = [
        {
            "id": key,
            "answer": text,
            **dict.fromkeys(STEP_NAMES, "一步。"),
            "distortions": [
                {
                    "id": "mind_reading",
                    "evidence": "难受",
                    "labeller": "answer",
                    "confidence": 1.0,
                }
            ],
            "risk": "explicit" if key == "3" else "none",
        }
        for key, text in ANSWERS.items()
    ]
    dataset = tmp_path / "dataset"
    write(dataset / "data" / "test-00000-of-00001.parquet", rows)
    write(dataset / "data" / "train-00000-of-00001.parquet", [{**rows[0], "id": "99"}])
    finish(dataset)
    answers = {**PREDICTED, "3": "请拨打12356，或者去最近的医院急诊。"}
    rows = [
        {"question_id": key, "text": text, "distortions": ["mind_reading", "labeling"]}
        for key, text in answers.items()
    ]
    scored = run(write(tmp_path / "sys.jsonl", rows), ref=dataset, metrics="default")
    assert scored.report.n_references == 12
    found = values(scored, "sys")
    assert found["distortion_micro_f1"] == pytest.approx(2 * 12 / (2 * 12 + 12))
    assert found["help_route"] == 1.0
    assert values(scored, FLOOR)["help_route"] == 0.0
    assert found["cbt_record"] is None
    assert values(scored, CEILING)["cbt_record"] == 1.0


def test_a_missing_split_names_those_there_are(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    write(dataset / "data" / "train-00000-of-00001.parquet", [{"id": "1", "answer": "好。"}])
    finish(dataset)
    with pytest.raises(DataError, match="no split 'test'") as caught:
        run(predictions(tmp_path, PREDICTED), ref=dataset, metrics="chrf2")
    assert caught.value.hint is not None and "train" in caught.value.hint


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path, ref: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    rows = [{"question_id": key, "text": text} for key, text in PREDICTED.items()]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    assert values(run(folder, ref=ref), "saved")["chrf2"] is not None


def test_what_is_not_scored_is_counted(tmp_path: Path, ref: Path) -> None:
    texts: dict[str, str | None] = {**PREDICTED, "1": None, "2": "  ", "3": ANSWERS["3"]}
    texts |= {"4": "还没说完，", "5": texts["6"], "77": "没有这个问题。"}
    del texts["0"]
    scored = run(predictions(tmp_path, texts), ref=ref)
    counts = scored.report.systems[0]
    assert (counts.n_missing, counts.n_none, counts.n_empty) == (1, 1, 1)
    assert (counts.n_identical, counts.n_repeated, counts.n_cut) == (1, 2, 1)
    assert counts.n_not_in_references == 1

    one = scored.report.scores[0]
    assert (one.n_scored, one.n_total) == (10, 12)
    warnings = " ".join(scored.report.warnings)
    assert "1 references have no prediction and 1 predictions hold no answer" in warnings


def test_answers_with_machine_text_are_scored_and_counted(tmp_path: Path, ref: Path) -> None:
    texts = {**PREDICTED, "1": "<think>先共情</think>慢慢来。", "2": f"{ANSWERS['2']}<|im_end|>"}
    counts = run(predictions(tmp_path, texts), ref=ref).report.systems[0]
    assert (counts.n_machine, counts.n_missing) == (2, 0)


def test_a_missing_answer_leaves_the_score_of_the_rest(tmp_path: Path, ref: Path) -> None:
    kept = {key: text for key, text in PREDICTED.items() if key != "5"}
    with_none = {**PREDICTED, "5": None}
    found = [
        values(run(predictions(tmp_path, texts), ref=ref), "sys") for texts in (kept, with_none)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "1", "text": "好"}, {"question_id": "1", "text": "坏"}], "already at"),
        ([{"question_id": "", "text": "好"}], "id is missing"),
        ([{"question_id": None, "text": "好"}], "id is missing"),
        ([{"key": "1", "text": "好"}], "no column with an id"),
        ([{"text": "好"}], "no column with an id"),
        ([{"question_id": "1", "words": "好"}], "no column with the text"),
        ([{"question_id": "1", "text": 5}], "expected text, found int"),
        ([{"question_id": "x1", "text": "好"}], "no id of ref.jsonl occurs"),
        ([{"question_id": "1", "text": "好", "distortions": "x"}], "expected a JSON list"),
    ],
)
def test_bad_rows_are_named_with_their_place(
    tmp_path: Path, ref: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(write(tmp_path / "sys.jsonl", rows), ref=ref)
    assert "sys.jsonl" in str(caught.value)


def test_text_in_another_encoding_is_an_error_with_the_flag(tmp_path: Path, ref: Path) -> None:
    path = tmp_path / "sys.csv"
    path.write_bytes("question_id,text\n1,你好\n".encode("gb18030"))
    with pytest.raises(DataError, match="not utf-8") as caught:
        run(path, ref=ref)
    assert caught.value.hint is not None and "gb18030" in caught.value.hint


def test_swapped_arguments_are_refused(tmp_path: Path, ref: Path) -> None:
    dataset = tmp_path / "dataset"
    write(dataset / "data" / "test-00000-of-00001.parquet", [{"id": "1", "answer": "好。"}])
    with pytest.raises(UsageError, match="place of predictions"):
        run(finish(dataset), ref=ref)


def built(folder: Path, answers: Mapping[str, str], split: str = "test") -> Path:
    """A dataset with the five steps of each answer."""
    rows = []
    for key, text in answers.items():
        steps = [*text.split("，")[:4], "慢慢来。"]
        rows.append({"id": key, "answer": text, **dict(zip(STEP_NAMES, steps, strict=True))})
    write(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    return finish(folder)


STEPPED = {
    str(
        number
    ): f"听起来你为第{number}件事难受，你觉得全完了，真有那么多证据吗，每天走{number}步，慢慢来。"
    for number in range(40)
}


def test_a_dataset_is_scored_against_another_on_the_same_split(tmp_path: Path) -> None:
    ref = built(tmp_path / "first.v1", STEPPED)
    second = built(
        tmp_path / "second.v1", {k: t.replace("难受", "伤心") for k, t in STEPPED.items()}
    )
    built(second, {"99": "啊，啊，啊，啊"}, split="train")
    scored = run(second, ref=ref, metrics="bleu_zh,cbt_record")
    assert 50 < (values(scored, "second.v1")["bleu_zh"] or 0) < 100
    assert values(scored, "second.v1")["cbt_record"] == 1.0
    assert scored.report.systems[0].n_rows == 40
    with pytest.raises(UsageError, match="as predictions and as references"):
        run(ref, ref=ref)


def test_how_right_the_step_model_is_on_the_references_is_told(tmp_path: Path) -> None:
    ref = built(tmp_path / "ds", STEPPED)
    path = predictions(tmp_path, STEPPED)
    report = run(path, ref=ref, metrics="cbt_steps").report
    assert "steps:shipped-" in report.scores[0].signature
    assert "of 40 reference answers" in report.notes[0]
    built(ref, {"1": STEPPED["1"]}, split="train")
    (ref / "data" / "test-00000-of-00001.parquet").unlink()
    # too few to say anything
    notes = run(path, ref=ref, metrics="cbt_steps", split="train").report.notes
    assert not any("reference answers" in note for note in notes)


def test_progress_ends_at_the_number_of_answers(tmp_path: Path, ref: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = ScoreSettings(
        predictions=(predictions(tmp_path, PREDICTED),), ref=ref, metrics="chrf2"
    )
    score(settings, lambda *counts: told.append(counts))
    assert told == [(12, 36), (24, 36), (36, 36)]  # the system's and those of the two anchors


def test_files_that_look_swapped_are_warned_about(tmp_path: Path, ref: Path) -> None:
    path = predictions(tmp_path, PREDICTED)
    assert any("swapped" in warning for warning in run(ref, ref=path).report.warnings)
    assert not any("swapped" in warning for warning in run(path, ref=ref).report.warnings)


def test_the_encoding_is_that_of_the_files_that_need_it(tmp_path: Path, ref: Path) -> None:
    path = predictions(tmp_path, PREDICTED)
    expected = values(run(path, ref=ref), "sys")
    path.write_bytes(path.read_text("utf-8").encode("gb18030"))
    assert values(run(path, ref=ref, encoding="gb18030"), "sys") == expected


@pytest.mark.parametrize(
    ("named", "flag"), [("ref", "--ref-column"), ("predictions", "--prediction-column")]
)
def test_a_wrong_column_is_answered_with_its_flag(
    tmp_path: Path, ref: Path, named: str, flag: str
) -> None:
    odd = write(tmp_path / "odd.jsonl", [{"id": "1", "words": "好。"}])
    with pytest.raises(DataError, match="the text") as caught:
        run(*([odd] if named == "predictions" else [ref]), ref=odd if named == "ref" else ref)
    assert caught.value.hint is not None and f"with {flag}" in caught.value.hint


@pytest.mark.parametrize("name", ["bleu_13a", "bleu", "chrf++", "meteor", "rougeL", "bertscore_en"])
def test_conventions_that_mislead_on_chinese_are_refused(
    tmp_path: Path, ref: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="is refused"):
        run(predictions(tmp_path, PREDICTED), ref=ref, metrics=name)


def test_an_unknown_metric_lists_what_there_is(tmp_path: Path, ref: Path) -> None:
    with pytest.raises(UsageError, match="no metric 'blue'") as caught:
        run(predictions(tmp_path, PREDICTED), ref=ref, metrics="blue")
    assert caught.value.hint is not None and "bleu_zh" in caught.value.hint


def test_text_that_is_hardly_chinese_is_warned_about(tmp_path: Path, ref: Path) -> None:
    english = dict.fromkeys(PREDICTED, "I can see how hard this is for you.")
    warnings = run(predictions(tmp_path, english), ref=ref).report.warnings
    assert any("hardly any Chinese" in warning for warning in warnings)


def test_text_in_the_other_script_is_warned_about(tmp_path: Path) -> None:
    traditional = {
        key: text.replace("个问题让你很难受", "個問題讓你很難受").replace("钟", "鐘")
        for key, text in ANSWERS.items()
    }
    other = run(predictions(tmp_path, traditional), ref=predictions(tmp_path, ANSWERS, "ref.jsonl"))
    assert any("sys: in traditional characters" in line for line in other.report.warnings)
    same = run(
        predictions(tmp_path, traditional), ref=predictions(tmp_path, traditional, "ref.jsonl")
    )
    assert not any("characters" in line for line in same.report.warnings)


LLAMA_FACTORY = [
    {"prompt": "<|im_start|>user\n问", "predict": PREDICTED[key], "label": text}
    for key, text in ANSWERS.items()
]
MS_SWIFT = [
    {"response": PREDICTED[key], "labels": text, "logprobs": None, "messages": []}
    for key, text in ANSWERS.items()
]


@pytest.mark.parametrize("rows", [LLAMA_FACTORY, MS_SWIFT])
def test_files_that_bring_their_references_are_scored_as_they_are(
    tmp_path: Path, ref: Path, rows: list[dict[str, Any]]
) -> None:
    expected = values(run(predictions(tmp_path, PREDICTED), ref=ref), "sys")
    scored = run(write(tmp_path / "generated.jsonl", rows))
    assert values(scored, "generated") == expected
    assert scored.report.references in ("label of generated.jsonl", "labels of generated.jsonl")
    assert "paired by row: neither side has ids" in scored.report.notes


def test_several_files_are_scored_together_when_they_bring_the_same_references(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "a.jsonl", LLAMA_FACTORY)
    same = write(tmp_path / "b.jsonl", [{**row, "predict": "慢慢来。"} for row in LLAMA_FACTORY])
    assert len(run(first, same).report.systems) == 4
    other = write(tmp_path / "c.jsonl", [{**row, "label": "别的。"} for row in LLAMA_FACTORY])
    with pytest.raises(DataError, match=r"c\.jsonl: its `label` differs from that of a\.jsonl"):
        run(first, other)
    without = write(tmp_path / "d.jsonl", [{"text": "好"}] * 12)
    with pytest.raises(UsageError, match="no references"):
        run(first, without)


def test_an_id_beside_prediction_and_label_is_named_once_for_both(tmp_path: Path) -> None:
    rows = [{"idx": number, **row} for number, row in enumerate(LLAMA_FACTORY)]
    path = write(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match="idx may be one") as caught:
        run(path)
    assert str(caught.value.hint).endswith("--id-column")
    assert run(path, id_column="idx").references.ids[-1] == "11"


def test_references_that_hold_no_text_are_no_references(tmp_path: Path) -> None:
    rows = [{**row, "labels": None} for row in MS_SWIFT]
    with pytest.raises(DataError, match="`labels` holds no text in any row"):
        run(write(tmp_path / "r.jsonl", rows))


def test_a_label_that_is_a_class_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no references"):
        run(write(tmp_path / "r.jsonl", [{**row, "label": 1} for row in LLAMA_FACTORY]))


def _lines(path: Path, texts: Sequence[str], end: str = "\n") -> Path:
    path.write_bytes((end.join(texts) + end).encode("utf-8"))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_plain_text_is_scored_line_by_line_and_a_blank_line_is_an_empty_answer(
    tmp_path: Path, ref: Path, end: str
) -> None:
    texts = {**PREDICTED, "4": "", "5": "一行里有\u2028分隔符。"}
    expected = values(run(predictions(tmp_path, texts), ref=ref), "sys")
    hypotheses = _lines(tmp_path / "hyp.txt", list(texts.values()), end)
    scored = run(hypotheses, ref=_lines(tmp_path / "ref.txt", list(ANSWERS.values())))
    assert values(scored, "hyp") == expected
    assert scored.report.systems[0].n_empty == 1


def test_rows_pair_by_their_order_only_when_neither_side_has_ids(tmp_path: Path, ref: Path) -> None:
    texts = _lines(tmp_path / "hyp.txt", list(PREDICTED.values()))
    with pytest.raises(
        DataError, match=r"no column with an id .* the references in ref\.jsonl have"
    ):
        run(texts, ref=ref)
    with pytest.raises(DataError, match=r"the references in hyp\.txt have none"):
        run(predictions(tmp_path, PREDICTED), ref=texts)
    short = _lines(tmp_path / "short.txt", list(PREDICTED.values())[:-1])
    with pytest.raises(DataError, match=r"11 rows, and hyp\.txt has 12"):
        run(short, ref=texts)


@pytest.mark.parametrize("name", ["qid", "idx", "sample_id", "questionId", "编号"])
def test_an_id_under_another_name_is_never_passed_over(tmp_path: Path, name: str) -> None:
    rows = [{name: key, "text": text} for key, text in PREDICTED.items()]
    reference = _lines(tmp_path / "ref.txt", list(ANSWERS.values()))
    with pytest.raises(DataError, match=f"{name} may be one") as caught:
        run(write(tmp_path / "sys.jsonl", rows), ref=reference)
    assert "--id-column" in str(caught.value.hint)


def test_json_lines_named_txt_are_not_scored_as_text(tmp_path: Path, ref: Path) -> None:
    path = predictions(tmp_path, PREDICTED).rename(tmp_path / "sys.txt")
    with pytest.raises(DataError, match="looks like JSON Lines"):
        run(path, ref=ref)
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path / "none.txt", ref=ref)


def test_few_questions_are_warned_about(tmp_path: Path, ref: Path) -> None:
    warnings = run(predictions(tmp_path, PREDICTED), ref=ref).report.warnings
    assert any("only 12 questions" in warning for warning in warnings)


def test_the_anchors_bound_the_scores(tmp_path: Path) -> None:
    texts = {
        "1": "昨晚又失眠了吧，先深呼吸几次。",
        "2": "和母亲争吵之后，写封信也是办法。",
        "3": "考试失利不代表全部，给自己一点时间。",
        "4": "朋友不回消息，原因可能有很多种。",
    }
    ref = write(tmp_path / "ref.jsonl", [{"id": k, "answer": t} for k, t in texts.items()])
    half = {key: text[:9] + "之类的话。" for key, text in texts.items()}
    scored = run(predictions(tmp_path, half), ref=ref, metrics="lexical")
    floor, mine, ceiling = (values(scored, name) for name in (FLOOR, "sys", CEILING))
    for metric in ("bleu_zh", "bleu_jieba", "chrf2", "meteor_jieba"):
        assert floor[metric] < mine[metric] < ceiling[metric]  # type: ignore[operator]
    assert ceiling["bleu_zh"] == pytest.approx(100)


def test_the_floor_never_meets_its_own_question(tmp_path: Path) -> None:
    texts = {str(number): "甲乙丙丁戊"[number] * 9 for number in range(5)}
    ref = write(tmp_path / "ref.jsonl", [{"id": k, "answer": t} for k, t in texts.items()])
    for seed in range(20):
        scored = run(predictions(tmp_path, texts), ref=ref, metrics="chrf2", seed=seed)
        assert values(scored, FLOOR)["chrf2"] == 0


def test_every_number_carries_everything_that_can_change_it(tmp_path: Path, ref: Path) -> None:
    path = predictions(tmp_path, PREDICTED)
    scored = run(path, ref=ref, metrics="bleu_jieba")
    fields = dict(field.split(":", 1) for field in scored.report.scores[0].signature.split("|"))
    assert fields["tok"] == "jieba-0.42.1+hmm"
    assert fields["n"] == "12" and fields["ci"] == "t"
    drawn = run(path, ref=ref, metrics="bleu_jieba", interval="percentile").report.scores[0]
    assert "|bs:50|seed:12345" in drawn.signature
    assert len(fields["dict"]) == len(fields["refs"]) == 12
    changed = write(
        tmp_path / "other.jsonl", [{"id": k, "answer": t + "。"} for k, t in ANSWERS.items()]
    )
    other = run(path, ref=changed, metrics="bleu_jieba").report.scores[0].signature
    assert other != scored.report.scores[0].signature


def test_the_same_seed_gives_the_same_report(tmp_path: Path, ref: Path) -> None:
    path = predictions(tmp_path, PREDICTED)
    told = {"ref": ref, "interval": "percentile"}
    first, second = (run(path, seed=9, **told).report for _ in range(2))
    assert first == second
    assert first.scores[0].low != run(path, seed=10, **told).report.scores[0].low


def test_intervals_draw_questions_not_rows(tmp_path: Path) -> None:
    rows = [
        {"id": f"{number}-{copy}", "answer": ANSWERS[str(number)], "q": str(number)}
        for number in range(12)
        for copy in range(4)
    ]
    ref = write(tmp_path / "ref.jsonl", rows)
    texts = {
        row["id"]: PREDICTED[row["q"]] if int(row["q"]) % 2 else "完全不同的话。" for row in rows
    }
    path = predictions(tmp_path, texts)
    settings = {"metrics": "chrf2", "bootstrap": 500}
    by_row, by_question = (
        run(path, ref=ref, cluster_column=column, **settings).report.scores[0]
        for column in ("id", "q")
    )
    assert by_row.value == by_question.value
    assert by_question.high is not None and by_question.low is not None
    assert by_row.high is not None and by_row.low is not None
    assert by_question.high - by_question.low > 1.4 * (by_row.high - by_row.low)
    assert "clusters:12" in by_question.signature


def test_two_files_of_one_model_are_told_apart_by_their_names(tmp_path: Path, ref: Path) -> None:
    rows = [{"question_id": k, "text": t, "system": "m"} for k, t in PREDICTED.items()]
    files = [write(tmp_path / name, rows) for name in ("one.jsonl", "two.jsonl")]
    report = run(*files, ref=ref).report
    assert [one.system for one in report.systems[:2]] == ["m", "two"]
    assert any("hold the same answers" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("说完了。", None, False),
        ("说完了", None, True),
        ("还没有，", None, True),
        ("加油😊", None, False),
        ("说完了", "stop", False),
        ("说完了。", "length", True),
        ("说完了。", "network_error", True),
        ("说完了。", "sensitive", True),
        ("", None, False),
    ],
)
def test_a_cut_text_is_known_by_its_end_or_by_the_record(
    text: str, reason: str | None, expected: bool
) -> None:
    assert is_cut(text, reason) is expected


def test_no_value_is_ever_nan(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref.jsonl", [{"id": "1", "answer": ""}, {"id": "2", "answer": None}])
    scored = run(predictions(tmp_path, {"1": "", "2": "好。"}), ref=ref, metrics="all")
    for one in scored.report.scores:
        assert one.value is None or not math.isnan(one.value)
        assert (one.value is None) == (one.unscored_reason is not None)


def test_the_step_classifier_learns_from_the_train_split(tmp_path: Path, ref: Path) -> None:
    parts = ["你很难受，我理解。", "你觉得都完了。", "真的吗？", "每天散步吧。", "会好的，加油。"]
    rows = [{"id": "1", "answer": "".join(parts), **dict(zip(STEP_NAMES, parts, strict=True))}]
    write(tmp_path / "ds" / "data" / "train-00000-of-00001.parquet", rows)
    finish(tmp_path / "ds")
    path = predictions(tmp_path, dict.fromkeys(PREDICTED, "".join(parts)))
    one = run(path, ref=ref, metrics="cbt_complete", step_classifier=str(tmp_path / "ds"))
    assert values(one, "sys")["cbt_complete"] == 1.0
    assert "steps:bayes-" in one.report.scores[0].signature
    with pytest.raises(DataError, match="no such folder"):
        run(path, ref=ref, metrics="cbt_steps", step_classifier=str(tmp_path / "none"))


# --- several references to a question -------------------------------------------------------------


def questions_with_answers(folder: Path, answers: Mapping[str, Sequence[str]]) -> Path:
    """A file in PsyQA's form."""
    rows = [
        {
            "questionID": int(key),
            "question": f"第{key}个烦恼怎么办？",
            "description": f"第{key}次写下这些话。",
            "keywords": "烦恼",
            "answers": [
                {"answer_text": text, "has_label": False, "labels_sequence": None} for text in own
            ],
        }
        for key, own in answers.items()
    ]
    path = folder / "PsyQA.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


MANY = {
    key: [text, f"先歇一歇，第{key}个问题会慢慢好的。", "谢谢你说出来，我在听。"][
        : 1 + int(key) % 3
    ]
    for key, text in ANSWERS.items()
}


def test_human_answers_of_psyqa_are_several_references(tmp_path: Path) -> None:
    ref = questions_with_answers(tmp_path, MANY)
    names = "bleu_zh,chrf2,meteor_jieba,rouge_l_jieba,length_ratio,cbt_steps"
    scored = run(predictions(tmp_path, PREDICTED), ref=ref, metrics=names)
    found = {s.metric: s for s in scored.report.scores if s.system == "sys"}
    groups = [MANY[key] for key in PREDICTED]
    for name, one in found.items():
        alone = score_lists(name, list(PREDICTED.values()), groups)
        assert one.value == pytest.approx(alone.value, rel=1e-12), name
        assert "|nrefs:var|" in one.signature
        assert one.low is not None or name == "cbt_steps"  # all are alike
    told = "12 questions with 24 reference answers, 1 to 3 each"
    assert any(note.startswith(told) for note in scored.report.notes)
    assert all(check.difference is not None for check in scored.report.checks)
    assert not any(check.off for check in scored.report.checks)


def test_an_answer_that_stands_among_the_references_is_identical_and_scores_full(
    tmp_path: Path,
) -> None:
    ref = questions_with_answers(tmp_path, MANY)
    own = {key: texts[-1] for key, texts in MANY.items()}
    scored = run(predictions(tmp_path, own), ref=ref, metrics="bleu_zh,chrf2")
    (counts,) = [one for one in scored.report.systems if not one.is_anchor]
    assert counts.n_identical == 12
    assert list(values(scored, "sys").values()) == pytest.approx([100, 100])


def test_a_question_whose_answers_are_all_empty_is_no_reference(tmp_path: Path) -> None:
    ref = questions_with_answers(tmp_path, {**MANY, "0": [""]})
    scored = run(predictions(tmp_path, PREDICTED), ref=ref, metrics="chrf2")
    assert scored.report.n_references_missing == 1
    score_of = next(one for one in scored.report.scores if one.system == "sys")
    assert (score_of.n_scored, score_of.n_total) == (11, 12)


def test_other_further_answers_are_other_references(tmp_path: Path) -> None:
    hypotheses = predictions(tmp_path, PREDICTED)
    first = run(hypotheses, ref=questions_with_answers(tmp_path, MANY), metrics="chrf2")
    fewer = {key: texts[:1] for key, texts in MANY.items()}
    second = run(hypotheses, ref=questions_with_answers(tmp_path, fewer), metrics="chrf2")
    assert first.report.references_sha256 != second.report.references_sha256


def test_lists_in_any_file_are_several_references(tmp_path: Path) -> None:
    psyqa = questions_with_answers(tmp_path, MANY)
    hypotheses = predictions(tmp_path, PREDICTED)
    expected = values(run(hypotheses, ref=psyqa, metrics="bleu_zh,chrf2"), "sys")
    rows = [{"id": key, "references": texts} for key, texts in MANY.items()]
    listed = write(tmp_path / "listed.jsonl", rows)
    named = [{"id": key, "human": [{"text": text} for text in own]} for key, own in MANY.items()]
    objects = write(tmp_path / "objects.jsonl", named)
    own = [{"id": key, "predict": PREDICTED[key], "label": MANY[key]} for key in PREDICTED]
    brought = write(tmp_path / "sys.jsonl", own)
    for scored in (
        run(hypotheses, ref=listed, metrics="bleu_zh,chrf2"),
        run(hypotheses, ref=objects, ref_column="human", metrics="bleu_zh,chrf2"),
        run(brought, metrics="bleu_zh,chrf2"),
    ):
        assert values(scored, "sys") == expected


def test_several_files_are_several_references_paired_by_id(tmp_path: Path) -> None:
    hypotheses = predictions(tmp_path, PREDICTED)
    listed = write(
        tmp_path / "listed.jsonl",
        [{"id": key, "references": texts} for key, texts in MANY.items()],
    )
    parts = []
    for place in range(3):
        rows = [
            {"id": key, "answer": texts[place]}
            for key, texts in reversed(MANY.items())
            if len(texts) > place
        ]
        if place == 0:
            rows = rows[::-1]  # the first file gives the order
        parts.append(write(tmp_path / f"part{place}.jsonl", rows))
    one = run(hypotheses, ref=listed, metrics="bleu_zh,meteor_jieba")
    several = score(
        ScoreSettings(predictions=(hypotheses,), ref=parts, metrics="bleu_zh,meteor_jieba")
    )
    assert several.report.references == "part0.jsonl + part1.jsonl + part2.jsonl"
    assert several.report.references_sha256 == one.report.references_sha256
    assert values(several, "sys") == values(one, "sys")
    with pytest.raises(UsageError, match="twice"):
        score(ScoreSettings(predictions=(hypotheses,), ref=(parts[0], parts[0])))
    lines = _lines(tmp_path / "ref.txt", ["好。"])
    with pytest.raises(DataError, match=r"has ids and ref\.txt has none"):
        score(ScoreSettings(predictions=(hypotheses,), ref=(parts[0], lines)))
    other = write(tmp_path / "other.jsonl", [{"id": "x", "answer": "好。"}])
    with pytest.raises(DataError, match=r"no id of part0\.jsonl occurs in other\.jsonl"):
        score(ScoreSettings(predictions=(hypotheses,), ref=(parts[0], other)))


def test_plain_files_of_references_must_have_the_same_lines(tmp_path: Path) -> None:
    hypotheses = _lines(tmp_path / "hyp.txt", ["我很好。", "慢慢来。"])
    first = _lines(tmp_path / "one.ref", ["我很好！", "别急。"])
    second = _lines(tmp_path / "two.ref", ["我挺好。", "慢慢来。"])
    scored = score(ScoreSettings(predictions=(hypotheses,), ref=(first, second), metrics="bleu_zh"))
    theirs = BLEU(tokenize="zh").corpus_score(
        ["我很好。", "慢慢来。"], [["我很好！", "别急。"], ["我挺好。", "慢慢来。"]]
    )
    assert values(scored, "hyp")["bleu_zh"] == pytest.approx(theirs.score, rel=1e-12)
    shorter = _lines(tmp_path / "three.ref", ["我挺好。"])
    with pytest.raises(DataError, match=r"one\.ref has 2 rows and three\.ref 1"):
        score(ScoreSettings(predictions=(hypotheses,), ref=(first, shorter)))


def test_each_reference_against_the_others_is_the_row_of_people(tmp_path: Path) -> None:
    """The mean over questions of what one of its references, drawn by lot, scores on average."""
    scored = run(
        predictions(tmp_path, PREDICTED),
        ref=questions_with_answers(tmp_path, MANY),
        metrics="meteor_jieba,chrf2,bleu_zh,distinct_2",
    )
    found = {one.metric: one for one in scored.report.scores if one.system == LEFT_OUT}
    groups = [texts for texts in MANY.values() if len(texts) > 1]
    means = [
        np.mean(
            [
                score_lists("meteor_jieba", [one], [[o for o in group if o is not one]]).value
                for one in group
            ]
        )
        for group in groups
    ]
    assert found["meteor_jieba"].value == pytest.approx(np.mean(means), rel=1e-12)
    assert (found["meteor_jieba"].n_scored, found["meteor_jieba"].n_total) == (8, 12)
    assert found["meteor_jieba"].low is not None
    # chrF and BLEU: with two references each, sacrebleu's corpus of both directions
    two = {key: texts[:2] for key, texts in MANY.items() if len(texts) > 1}
    scored = run(
        predictions(tmp_path, {key: PREDICTED[key] for key in two}),
        ref=questions_with_answers(tmp_path, two),
        metrics="chrf2,bleu_zh",
    )
    ours = {one.metric: one.value for one in scored.report.scores if one.system == LEFT_OUT}
    there, back = zip(*two.values(), strict=True)
    both = ([*there, *back], [[*back, *there]])
    assert ours["chrf2"] == pytest.approx(CHRF().corpus_score(*both).score, rel=1e-12)
    theirs = BLEU(tokenize="zh").corpus_score(*both).score
    assert ours["bleu_zh"] == pytest.approx(theirs, rel=1e-12)
    assert found["distinct_2"].value is None
    assert "left_out:1" in found["chrf2"].signature
    assert any(LEFT_OUT in note for note in scored.report.notes)


def test_an_equal_system_is_above_people_in_the_row_and_level_with_them_beside_them(
    tmp_path: Path,
) -> None:
    """All answers are drawn from the same words: nobody writes better than anybody."""
    rng = np.random.default_rng(5)
    words = "我你觉得压力睡眠工作朋友可以试试慢慢来先把事情写下每天散步记录心情变化相信感受"

    def drawn() -> str:
        return "".join(rng.choice(list(words), 60))

    ref = questions_with_answers(
        tmp_path, {str(n): [drawn() for _ in range(2 + n % 2)] for n in range(80)}
    )
    system = predictions(tmp_path, {str(n): drawn() for n in range(80)})
    scored = run(system, ref=ref, metrics="chrf2,bleu_zh")
    in_row = {(o.metric, o.system): o.value or 0 for o in scored.report.scores}
    beside = {(o.metric, o.system): o for o in scored.report.beside_people}
    for metric in ("chrf2", "bleu_zh"):
        gap = in_row[metric, "sys"] - in_row[metric, LEFT_OUT]
        one, other = beside[metric, "sys"], beside[metric, LEFT_OUT]
        assert one.low is not None and one.high is not None and other.value is not None
        assert gap > 0 and abs((one.value or 0) - other.value) < gap / 2
        assert one.low < other.value < one.high


def test_beside_people_a_system_has_as_many_references_as_they_have(tmp_path: Path) -> None:
    """A system that answers as the first author does scores as a person, not higher."""
    two = {key: texts[:2] for key, texts in MANY.items() if len(texts) > 1}
    own = {key: texts[0] for key, texts in two.items()}
    scored = run(
        predictions(tmp_path, own),
        ref=questions_with_answers(tmp_path, two),
        metrics="meteor_jieba,distinct_1",
    )
    assert [one.metric for one in scored.report.beside_people] == ["meteor_jieba"] * 2
    system, people = scored.report.beside_people
    assert (system.system, people.system) == ("sys", LEFT_OUT)
    # half of the time its own words are left out, half of the time they are the reference
    apart = [score_lists("meteor_jieba", [one], [other]).value or 0 for one, other in two.values()]
    alike = [score_lists("meteor_jieba", [one], [one]).value or 0 for one, _ in two.values()]
    assert system.value == pytest.approx((np.mean(apart) + np.mean(alike)) / 2, rel=1e-12)
    assert people.value == pytest.approx(
        next(o.value for o in scored.report.scores if o.system == LEFT_OUT and o.value), rel=1e-12
    )
    single = run(
        predictions(tmp_path, own), ref=questions_with_answers(tmp_path, MANY), anchors=False
    )
    assert single.report.beside_people == ()


def test_a_folder_of_scores_keeps_all_references(tmp_path: Path) -> None:
    ref = questions_with_answers(tmp_path, MANY)
    files = [predictions(tmp_path, PREDICTED), predictions(tmp_path, ANSWERS, "other.jsonl")]
    flags = {"predictions": files[:1], "ref": ref, "metrics": "chrf2", "out": tmp_path / "out"}
    resolved = resolve(ScoreSettings, flags=flags, environ={})
    write_folder(tmp_path / "out", score(resolved.values), resolved, "now")
    given = (tmp_path / "out", files[1])
    found = compare(CompareSettings(predictions=given, ref=ref, metrics="chrf2", trials=100))
    assert [one.metric for one in found.pairs] == ["chrf2"]
    assert "怎么办" in found.worst[0].asked if found.worst else found.best
