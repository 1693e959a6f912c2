"""`cbtqa rate` from its own words: the way through a study, exit codes, and what stays unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cbtqa.cli.rate import app
from cbtqa.errors import CbtqaError
from tests.ratings.conftest import edit_sheet, rate_rows, write_inputs


def run(*words: str | Path, code: int = 0) -> Any:
    """Runs a command; an error of ours counts as its exit code, as in the whole program."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, CbtqaError):
        assert done.exception.exit_code == code, done.exception
        return done.exception
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def new_study(folder: Path, *more: str) -> Path:
    given = write_inputs(folder)
    words = [word for path in given["predictions"] for word in ("--predictions", path)]
    out = folder / "study"
    run(
        "new",
        *words,
        "--questions",
        given["questions"],
        "--n",
        "8",
        "--raters",
        "3",
        "--out",
        out,
        *more,
    )
    return out


def test_a_study_goes_from_predictions_to_a_named_report(tmp_path: Path) -> None:
    study = new_study(tmp_path)
    filled = [
        edit_sheet(
            study / "sheets" / f"R{n}.xlsx",
            tmp_path / f"R{n}.xlsx",
            rate_rows(lambda code, _, n=n: (int(code[-2:]) + n) % 3),  # type: ignore[misc]
        )
        for n in (1, 2, 3)
    ]
    collected = json.loads(run("collect", study, *filled, "--json").stdout)
    assert (collected["n_kept"], collected["refused"]) == (3 * 51, [])
    status = json.loads(run("status", study, "--json").stdout)
    assert [rater["n_done"] for rater in status["raters"]] == [17, 17, 17]
    blind = json.loads(run("report", study, "--json").stdout)
    assert (blind["is_blind"], blind["systems"]) == (True, ["A", "B"])
    run("unblind", study, "--key", tmp_path / "study.key.json", "--by", "Li Hua")
    named = json.loads(run("report", study, "--out", tmp_path / "out", "--json").stdout)
    assert (named["is_blind"], named["systems"]) == (False, ["alpha", "beta"])
    assert {s["mean"] for s in named["scores"]} == {s["mean"] for s in blind["scores"]}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for words in ("alpha", "Krippendorff", "Baichuan-7B", "1.734", "12356", "Wilcoxon"):
        assert words in page
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.html",
        "report.json",
        "ratings.jsonl",
        "heds.md",
        "methods.md",
    }


def test_a_new_study_says_how_much_there_is_to_do_and_what_comes_next(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, 4)
    said = run(
        "new",
        *(part for path in inputs["predictions"] for part in ("--predictions", path)),
        *("--questions", inputs["questions"], "--raters", "2", "--out", tmp_path / "study"),
    ).stderr
    said = " ".join(said.split())
    assert "each rater has 8 items" in said
    assert f"next: cbtqa rate serve {tmp_path / 'study'}" in said
    assert f"cbtqa rate collect {tmp_path / 'study'} FILLED.xlsx" in said


def test_refused_cells_end_with_4_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    study = new_study(tmp_path)

    def edit(tab: Any, columns: dict[str, int]) -> None:
        rate_rows(lambda *_: 1)(tab, columns)
        tab.cell(4, columns["value:relevance"]).value = 5

    path = edit_sheet(study / "sheets" / "R1.xlsx", tmp_path / "R1.xlsx", edit)
    done = run("collect", study, path, "--json", code=4)
    answer = json.loads(done.stdout)
    assert answer["n_kept"] == 50
    assert [entry["where"] for entry in answer["refused"]] == ["R1.xlsx:评分!E4"]
    assert "refused: R1.xlsx:评分!E4: 相关性: found 5" in done.stderr


def test_the_distortion_report_lists_labels_to_adjudicate(tmp_path: Path) -> None:
    given = write_inputs(tmp_path)
    study = tmp_path / "study"
    run(
        "new",
        "--questions",
        given["questions"],
        "--rubric",
        "distortions",
        "--n",
        "6",
        "--out",
        study,
    )
    for n, label in ((1, "labeling"), (2, "none")):
        path = edit_sheet(
            study / "sheets" / f"R{n}.xlsx",
            tmp_path / f"R{n}.xlsx",
            rate_rows(lambda _, name, label=label: 1 if name.endswith(label) else None),  # type: ignore[misc]
        )
        run("collect", study, path)
    report = json.loads(run("report", study, "--json").stdout)
    assert report["is_blind"] is False
    assert len(report["disagreements"]) == 12
    assert (study / "report" / "adjudication.csv").exists()
    assert "待裁定的标注" in (study / "report" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status", "nowhere"), 4),
        (("new", "--out", "x"), 2),
        (("new", "--out", "x", "--predictions", "a=x.jsonl", "--rubric", "none"), 4),
        (("new", "--out", "x", "--predictions", "a=x.jsonl", "--n", "0"), 3),
        (("report", "nowhere"), 4),
    ],
)
def test_errors_have_their_exit_code_and_a_hint(
    words: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(run(*words, code=code))
    assert list(tmp_path.iterdir()) == []


def test_unblinding_with_another_studys_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    study, other = new_study(tmp_path), new_study(tmp_path / "one", "--seed", "9")
    run("unblind", study, "--key", other.with_name("study.key.json"), "--by", "x", code=4)
    assert not (study / "systems.json").exists()


def test_studies_and_ratings_are_exported(tmp_path: Path) -> None:
    study = new_study(tmp_path, "--no-sheets")
    for tool, n in (("label-studio", 4), ("potato", 6), ("ratings", 2)):
        done = run("export", study, "--to", tool, "--out", tmp_path / tool, "--json")
        assert len(json.loads(done.stdout)["files"]) == n
    assert not (study / "sheets").exists()


def test_serving_to_an_unknown_rater_is_refused_before_anything_listens(tmp_path: Path) -> None:
    study = new_study(tmp_path, "--no-sheets")
    assert "no rater R9" in str(run("serve", study, "--new-link", "R9", code=2))


def test_the_shipped_rubrics_are_listed() -> None:
    listed = json.loads(run("rubrics", "--json").stdout)
    assert {
        "cbt-llm",
        "cbt-llm.v2",
        "distortions",
        "ctrs",
        "ctrs-ladder",
        "cts-r",
        "act-fm",
        "tes",
        "session-safety",
    } == set(listed)


def test_the_newest_study_here_is_taken_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cbtqa rate new makes one" in run("status", code=2).hint
    study = new_study(tmp_path, "--no-sheets")
    found = run("status", "--json")
    assert str(study.relative_to(tmp_path)) in found.stderr
    assert json.loads(found.stdout) == json.loads(run("status", study, "--json").stdout)
    monkeypatch.chdir(study)
    assert json.loads(run("status", "--json").stdout) == json.loads(found.stdout)


def test_flags_of_a_judges_rows_are_refused_with_other_programs(tmp_path: Path) -> None:
    study = new_study(tmp_path, "--no-sheets")
    words = ("export", study, "--to", "potato", "--quoted-only", "--out", tmp_path / "x")
    assert "--quoted-only means nothing with --to potato" in str(run(*words, code=2))
    assert not (tmp_path / "x").exists()
