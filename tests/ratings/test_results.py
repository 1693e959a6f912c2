"""Results: the right numbers, from the right ratings, the same by every way in."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cbtqa.ratings.analysis import analyse, study_status, write_outputs
from cbtqa.ratings.answers import Answer
from cbtqa.ratings.collect import collect
from cbtqa.ratings.documents import datasheet_text, methods_text
from cbtqa.ratings.page import rating_page
from cbtqa.ratings.results import StudyReport
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import Presentation, StudyFolder
from cbtqa.statistics.agreement import krippendorff_alpha
from tests.ratings.conftest import MakeStudy, RunningForm, edit_sheet, rate_rows, write_rows

CRITERIA = ("relevance", "structure", "helpfulness")


def answer_all(
    folder: StudyFolder, rate: Callable[[Presentation, str], int | None]
) -> dict[str, Answer]:
    return {
        shown.code: Answer(values={c.id: rate(shown, c.id) for c in folder.rubric.criteria})
        for shown in folder.plan
    }


def made_up(shown: Presentation, criterion: str) -> int:
    """A rating that depends on item, rater and criterion, the same on every showing."""
    return (int(shown.item_id[1:]) * 7 + int(shown.rater[1:]) ** 2 + len(criterion)) % 3


def test_means_count_first_showings_and_leave_open_and_set_aside_out(folder: StudyFolder) -> None:
    answers = answer_all(folder, lambda shown, _: 0 if shown.repeat else 2)
    main = [p for p in folder.shown_to("R1") if not p.repeat]
    arm = folder.item_of(main[0]).arm
    answers[main[0].code].cannot_judge = True
    answers[main[0].code].values["relevance"] = 0
    answers[main[1].code].values["relevance"] = None
    report = analyse(folder, answers)
    scores = {(s.system, s.criterion): s for s in report.scores}
    assert {s.mean for s in report.scores} == {2.0}
    assert scores[arm, "relevance"].n_cannot_judge == 1
    assert sum(s.n_open for s in report.scores) == 1
    assert report.n_done == report.n_shown - 1
    assert {s.n_questions for s in report.scores} == {8}


def test_undefined_agreement_is_explained_never_nan(folder: StudyFolder) -> None:
    report = analyse(folder, answer_all(folder, lambda *_: 2))
    alpha = report.agreement[0].coefficients[0]
    assert alpha.value is None and "no variation" in (alpha.reason or "")
    exact = next(c for c in report.agreement[0].coefficients if c.name == "exact_agreement")
    assert exact.value == 1.0
    assert "NaN" not in json.dumps(report.model_dump(mode="json"))


def test_an_empty_study_still_reports(folder: StudyFolder) -> None:
    report = analyse(folder, {})
    assert {s.mean for s in report.scores} == {None}
    assert (report.n_done, report.differences) == (0, ())
    assert "NaN" not in json.dumps(report.model_dump(mode="json"))


def test_figures_equal_a_direct_calculation(make_study: MakeStudy) -> None:
    folder = make_study(n=30, raters=4).folder
    answers = answer_all(folder, made_up)
    report = analyse(folder, answers)
    table = np.full((4, 60), np.nan)
    column = {item: place for place, item in enumerate(folder.items)}
    for shown in folder.plan:
        if not shown.repeat:
            table[int(shown.rater[1:]) - 1, column[shown.item_id]] = made_up(shown, "structure")
    arm_a = [column[item.id] for item in folder.items.values() if item.arm == "A"]
    score = next(s for s in report.scores if (s.system, s.criterion) == ("A", "structure"))
    assert score.mean == pytest.approx(table[:, arm_a].mean())
    assert score.sd == pytest.approx(table[:, arm_a].std(ddof=1))
    assert score.low is not None and score.high is not None
    assert score.low < table[:, arm_a].mean() < score.high
    agreement = next(a for a in report.agreement if a.criterion == "structure")
    expected = krippendorff_alpha(table, "ordinal").value
    assert agreement.coefficients[0].value == pytest.approx(expected)
    effect = next(e for e in report.raters if (e.rater, e.criterion) == ("R2", "structure"))
    assert effect.severity == pytest.approx((table[1] - table[[0, 2, 3]].mean(axis=0)).mean())


def test_the_better_system_is_found_with_corrected_p_and_an_interval_off_zero(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=30, systems=("one", "two", "three")).folder
    best = folder.study.arms[1]

    def rate(shown: Presentation, criterion: str) -> int:
        return 2 if folder.item_of(shown).arm == best else made_up(shown, criterion) // 2

    report = analyse(folder, answer_all(folder, rate))
    for one in (d for d in report.differences if best in (d.first, d.second)):
        sign = 1 if one.second == best else -1
        assert sign * one.difference > 1
        assert min(sign * one.low, sign * one.high) > 0
        assert one.p_holm is not None and one.test.p is not None
        assert one.test.p <= one.p_holm < 0.001
        assert one.these_raters_only.effect == pytest.approx(sign)
    assert [o.criterion for o in report.omnibus] == list(CRITERIA)


def test_repeats_measure_how_steady_raters_are(make_study: MakeStudy) -> None:
    folder = make_study(n=20, repeat_share=0.5).folder
    steady = analyse(folder, answer_all(folder, made_up))
    wavering = analyse(folder, answer_all(folder, lambda p, c: (made_up(p, c) + p.repeat) % 3))
    assert steady.repeats[0].coefficients[0].value == 1.0
    assert wavering.repeats[0].coefficients[0].value == 0.0
    assert wavering.repeats[0].coefficients[0].n_items == 3 * folder.study.n_repeats
    assert steady.scores == wavering.scores


def test_raters_who_each_give_one_point_to_everything_are_not_called_steady(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=20, repeat_share=0.5).folder
    report = analyse(folder, answer_all(folder, lambda p, _: int(p.rater[1:]) - 1))
    named = {one.name: one for one in report.repeats[0].coefficients}
    alpha = named["alpha_within_ordinal"]
    assert alpha.value is None and "no variation" in (alpha.reason or "")
    assert [one.rater for one in report.repeats[0].by_rater] == list(folder.study.raters)


def test_means_beside_a_spread_of_raters_have_an_interval_that_holds_it(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=10).folder
    report = analyse(folder, answer_all(folder, lambda p, _: int(p.rater[1:]) - 1))
    score = report.scores[0]
    assert (score.mean, score.n_raters) == (pytest.approx(1), 3)
    assert score.low is not None and score.high is not None
    assert score.low < 0.5 and score.high > 1.5


def test_a_strict_rater_who_rated_one_system_alone_does_not_move_it(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=20, raters=4).folder

    def rate(shown: Presentation, _: str) -> int | None:
        if shown.rater != "R4":
            return 1 + (int(shown.item_id[1:]) + int(shown.rater[1:])) % 2
        return 0 if folder.item_of(shown).arm == "A" else None

    answers = answer_all(folder, rate)
    scores = {s.system: s for s in analyse(folder, answers).scores if s.criterion == "structure"}
    one = next(d for d in analyse(folder, answers).differences if d.criterion == "structure")
    raw = {name: score.raw_mean or 0 for name, score in scores.items()}
    assert raw["B"] - raw["A"] > 0.3
    assert abs(one.difference) < 0.15
    assert one.difference == pytest.approx((scores["B"].mean or 0) - (scores["A"].mean or 0))
    assert (one.n_raters, one.n_questions) == (3, 20)


@pytest.mark.parametrize(("raters", "words"), [(1, "this rater alone"), (2, "Two raters")])
def test_the_page_says_what_few_raters_cannot_tell(
    make_study: MakeStudy, raters: int, words: str
) -> None:
    folder = make_study(n=10, raters=raters, language="en").folder
    report = analyse(folder, answer_all(folder, made_up))
    assert words in rating_page(folder, report)
    assert ("fixed" in datasheet_text(folder, report, [])) == (raters == 1)
    low, high = report.scores[0].low, report.scores[0].high
    assert low is not None and high is not None and low < high


def test_one_question_gives_means_and_the_reason_why_there_is_no_interval(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=1, repeat_share=0).folder
    report = analyse(folder, answer_all(folder, made_up))
    assert {(s.low, (s.reason or "")[:17]) for s in report.scores} == {(None, "rests on one item")}
    assert all(d.test.p is None and d.test.reason for d in report.differences)
    assert "rests on one item" in rating_page(folder, report)


def test_a_drifting_rater_shows_in_the_order_effect(make_study: MakeStudy) -> None:
    folder = make_study(n=20, raters=2, repeat_share=0).folder
    drifting = analyse(
        folder, answer_all(folder, lambda p, _: 2 - min(2, p.order // 14) if p.rater == "R1" else 1)
    )
    level = analyse(folder, answer_all(folder, made_up))
    # R2's deviations mirror R1's at other places, so the pooled correlation is about half
    assert (drifting.order[0].rho.value or 0) < -0.3
    assert abs(level.order[0].rho.value or 0) < 0.3


def test_incomplete_blocks_get_a_one_way_icc_and_a_reason_for_the_other(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=20, raters=4, per_item=2).folder
    report = analyse(folder, answer_all(folder, made_up))
    named = {c.name: c for c in report.agreement[0].coefficients}
    assert named["icc_A_1"].value is None and "lack a rating" in (named["icc_A_1"].reason or "")
    assert named["icc_1_1"].value is not None and named["icc_1_1"].n_items == 40


def test_totals_turn_reversed_items_and_weigh_sections(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    rubric = tmp_path / "own.yaml"
    rubric.write_text(
        "{id: own, version: 1, title: {zh: t}, source: s, guidelines: {zh: g},"
        " sections: [{id: s, title: {zh: s}, weight: 0.5}, {id: t, title: {zh: t}}],"
        " totals: [{id: sum, name: {zh: 总}, sections: [s, t]},"
        " {id: mean, name: {zh: 均}, sections: [s, t], how: mean}],"
        " criteria: [{id: a, name: {zh: a}, question: {zh: a}, low: 1, high: 7, section: s, reversed: true},"
        " {id: b, name: {zh: b}, question: {zh: b}, low: 1, high: 7, section: t}]}",
        encoding="utf-8",
    )
    folder = make_study(rubric=str(rubric), n=4).folder
    report = analyse(folder, answer_all(folder, lambda _, name: 2 if name == "a" else 5))
    means = {s.criterion: s.mean for s in report.scores}
    assert means["total:sum"] == pytest.approx((8 - 2) * 0.5 + 5)
    assert means["total:mean"] == pytest.approx(((8 - 2) * 0.5 + 5) / 1.5)
    assert report.n_ratings == 2 * 3 * 8  # totals are not ratings
    answers = answer_all(folder, lambda _, name: 2)
    answers["R1-001"].values["a"] = None
    partial = analyse(folder, answers)
    assert sum(s.n_open for s in partial.scores if s.criterion == "total:sum") == 1


def test_labels_that_raters_differ_on_are_listed_for_adjudication(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = make_study(predictions=(), rubric="distortions", raters=3, repeat_share=0).folder
    answers = answer_all(folder, lambda *_: None)
    for shown in folder.plan:
        answers[shown.code].values["none"] = 1
    item = folder.plan[0].item_id
    odd = next(p for p in folder.shown_to("R2") if p.item_id == item)
    text = folder.items[item].description[:6]
    answers[odd.code] = Answer(values={"labeling": 1}, evidence={"labeling": text})
    report = analyse(folder, answers)
    assert [(d.item_id, d.criterion, d.yes, d.no) for d in report.disagreements] == [
        (item, "labeling", ("R2",), ("R1", "R3")),
        (item, "none", ("R1", "R3"), ("R2",)),
    ]
    assert report.disagreements[0].evidence == {"R2": text}
    assert (report.systems, report.is_blind) == (("questions",), False)
    assert report.agreement[0].coefficients[0].name == "alpha_nominal"
    write_outputs(tmp_path / "out", folder, answers, report, ["sheet"])
    lines = (tmp_path / "out" / "adjudication.csv").read_text("utf-8-sig").splitlines()
    assert len([line for line in lines if ",labeling," in line or ",none," in line]) == 2


def test_calibration_items_do_not_count(make_study: MakeStudy) -> None:
    folder = make_study(n=4, n_available=8, calibration=3, repeat_share=0).folder
    answers = answer_all(folder, lambda p, _: 0 if p.phase == "calibration" else 2)
    report = analyse(folder, answers)
    assert {s.mean for s in report.scores} == {2.0}
    assert report.n_ratings == 3 * 3 * 8


def test_the_papers_values_stand_beside_those_of_its_rubric_only(
    folder: StudyFolder, make_study: MakeStudy, tmp_path: Path
) -> None:
    published = {(p.system, p.criterion): p.value for p in analyse(folder, {}).published}
    assert published["Baichuan-7B", "relevance"] == 1.734
    assert published["Alpaca-Chinese-7B", "helpfulness"] == 1.408
    other = make_study(predictions=(), rubric="distortions", out=tmp_path / "other").folder
    assert analyse(other, {}).published == ()


def test_the_datasheet_and_the_methods_text_hold_what_the_study_knows(folder: StudyFolder) -> None:
    answers = answer_all(folder, made_up)
    answers["R1-001"].crisis = True
    report = analyse(folder, answers)
    sheet = datasheet_text(folder, report, ["sheet", "web"])
    for known in (
        "**3.2.1 Number of evaluators**\n\n3\n",
        "xlsx sheets, web form of cbtqa",
        "2 of 8",
    ):
        assert known in sheet
    assert sheet.count("## 4 Quality criterion") == 3
    assert sheet.count("TO FILL") > 8 and "$" not in sheet
    for language, words in (("zh", "随机种子 0"), ("en", "seed 0")):
        text = methods_text(folder, report, language)  # type: ignore[arg-type]
        assert words in text and "$" not in text
    assert [(f.rater, f.is_crisis) for f in report.flags] == [("R1", True)]


def test_status_says_who_has_done_how_much(folder: StudyFolder, store: Store) -> None:
    filled = edit_sheet(
        folder.sheets_path / "R1.xlsx", folder.path / "R1.xlsx", rate_rows(lambda *_: 1)
    )
    collect(folder, store, [filled])
    status = study_status(folder, store)
    assert [(r.n_done, r.n_shown) for r in status.raters] == [(17, 17), (0, 17), (0, 17)]
    assert status.raters[0].last_saved and status.raters[1].last_saved is None
    heads, rows = status.tables()[1].cells()
    assert rows[0][heads.index("alpha [95% interval]")] == "- (no item was rated by two raters)"


def post_ratings(form: RunningForm, folder: StudyFolder, store: Store) -> None:
    """Every rater rates everything through HTTP, one save per item."""
    for rater in folder.study.raters:
        cookie = store.begin_visit(form.links[rater])
        visit = store.visit(cookie or "")
        assert visit is not None
        connection = http.client.HTTPConnection("127.0.0.1", form.port)
        headers = {"Cookie": f"cbtqa-{folder.study.id}={cookie}", "X-CSRF-Token": visit.csrf}
        for shown in folder.shown_to(rater):
            changes = [
                {
                    "key": f"{shown.code}{c}",
                    "code": shown.code,
                    "field": f"value:{c}",
                    "value": made_up(shown, c),
                }
                for c in CRITERIA
            ]
            connection.request("POST", "/save", json.dumps({"changes": changes}), headers)
            reply = connection.getresponse()
            assert reply.status == 200 and json.loads(reply.read())["refused"] == []
        connection.close()


def by_both_ways(
    make_study: MakeStudy, tmp_path: Path, **size: int
) -> tuple[StudyReport, StudyReport]:
    reports = []
    for way in ("sheets", "web"):
        folder = make_study(out=tmp_path / way, **size).folder
        with Store(folder.store_path, folder.study.id) as store:
            if way == "sheets":
                paths = []
                for source in write_sheets(folder):
                    edit = rate_rows(
                        lambda code, name, f=folder: made_up(f.by_code[code], name[6:])
                    )  # type: ignore[misc]
                    paths.append(edit_sheet(source, tmp_path / source.name, edit))
                assert collect(folder, store, paths).rejections == []
            else:
                form = RunningForm(folder, store)
                post_ratings(form, folder, store)
                form.stop()
            reports.append(analyse(folder, store.answers()))
    return reports[0], reports[1]


def test_sheets_and_form_give_identical_numbers(make_study: MakeStudy, tmp_path: Path) -> None:
    sheets, web = by_both_ways(make_study, tmp_path)
    assert sheets == web
    assert sheets.n_done == sheets.n_shown == 48


@pytest.mark.slow
def test_a_larger_study_goes_both_ways_with_identical_numbers(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    sheets, web = by_both_ways(make_study, tmp_path, n=40, raters=5)
    assert sheets == web
    assert (sheets.n_shown, sheets.n_ratings) == (400, 1200)


def test_a_system_without_its_name_stays_a_letter_in_every_output(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    rows = [{"question_id": f"q{i}", "text": f"答{i}"} for i in range(8)]
    names = [f"secret{x}={write_rows(tmp_path / f'{x}.jsonl', rows)}" for x in "xy"]
    folder = make_study(predictions=tuple(names)).folder
    answers = answer_all(folder, made_up)
    report = analyse(folder, answers)
    assert report.is_blind and report.systems == ("A", "B")
    write_outputs(tmp_path / "out", folder, answers, report, [])
    assert not [p for p in (tmp_path / "out").iterdir() if "secret" in p.read_text("utf-8")]
