"""`simulate analyse`: tables and studies to figures, against statsmodels and published numbers."""

from __future__ import annotations

import csv
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cbtqa.cli.simulate import app
from cbtqa.errors import DataError, UsageError
from cbtqa.settings import resolve
from cbtqa.simulation.analysis.page import clear_pairs
from cbtqa.simulation.analysis.results import AnalysisReport
from cbtqa.simulation.analysis.run import analyse, run_analysis
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.instruments import load_instrument

SCORES = os.environ.get("CBTQA_CTRS_SCORES")  # read at import: tests run without CBTQA_*
ITEMS = [item.id for item in load_instrument("ctrs-ladder").items]
ARMS = ("ash_base", "ash_tuned", "elm_base", "elm_tuned")
Row = dict[str, Any]


def made_rows(seed: int, n_patients: int = 8, n_sessions: int = 3) -> list[Row]:
    """Invented scores: the tuned arms are better, patients differ, sessions too."""
    generator = np.random.default_rng(seed)
    ease = generator.normal(0, 0.6, n_patients)
    rows = []
    for place, arm in enumerate(ARMS):
        for patient in range(n_patients):
            for number in range(1, n_sessions + 1):
                centre = 5 + 0.9 * (place % 2) + 0.4 * (place // 2) + ease[patient]
                values = np.clip(np.rint(generator.normal(centre, 1.2, len(ITEMS))), 1, 10)
                row: Row = {"patient": f"p{patient}", "session": number, "arm": arm}
                row |= dict(zip(ITEMS, values.astype(int).tolist(), strict=True))
                rows.append(row | {"words": int(generator.integers(200, 900))})
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def settings_of(path: Path, **flags: Any) -> Any:
    given = {"instrument": ("ctrs-ladder",), "bootstrap": 20, **flags}
    return resolve(AnalysisSettings, flags={"source": path, **given}, environ={})


def analysed(path: Path, **flags: Any) -> AnalysisReport:
    return analyse(settings_of(path, **flags))[0]


def by_statsmodels(rows: list[Row], formula: str, method: str) -> Any:
    import pandas as pd
    from statsmodels.formula.api import mixedlm

    frame = pd.DataFrame(rows)
    frame["total"] = frame[ITEMS].sum(axis=1).astype(float)
    frame[["tree", "kind"]] = frame["arm"].str.split("_", expand=True)
    frame["z"] = (frame["session"] - frame["session"].mean()) / frame["session"].std(ddof=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mixedlm(formula, frame, groups="patient")
        return model.fit(reml=method == "reml", method=["bfgs"], gtol=1e-9)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_lost", [0, 17])
def test_the_model_of_arms_equals_statsmodels(tmp_path: Path, n_lost: int) -> None:
    rows = made_rows(1)
    rows = [row for i, row in enumerate(rows) if i % 5 or i // 5 >= n_lost]
    (result,) = analysed(write(tmp_path / "s.csv", rows)).instruments
    (outcome,) = result.outcomes
    theirs = by_statsmodels(rows, "total ~ C(arm, Treatment('ash_base'))", "reml")
    fit = outcome.published.fit
    assert fit is not None
    assert fit.engine == ("profile likelihood" if n_lost else "closed form")
    tolerance = 1e-6 if n_lost == 0 else 1e-4
    assert fit.estimates == pytest.approx(theirs.fe_params.to_numpy(), rel=tolerance)
    assert fit.var_group == pytest.approx(theirs.cov_re.iloc[0, 0], rel=tolerance)
    assert fit.var_residual == pytest.approx(theirs.scale, rel=tolerance)
    constraint = np.eye(5)[1:4]
    expected = theirs.wald_test(constraint[:, : len(theirs.params)], scalar=True)
    omnibus = outcome.published.omnibus
    assert omnibus is not None
    assert omnibus.chi2 == pytest.approx(expected.statistic, rel=0.05 if n_lost else 1e-6)
    assert omnibus.df == 3


def test_means_and_deviations_are_those_of_the_table(tmp_path: Path) -> None:
    rows = made_rows(3)
    (result,) = analysed(write(tmp_path / "s.csv", rows)).instruments
    for one in result.outcomes[0].arms:
        own = [sum(row[item] for item in ITEMS) for row in rows if row["arm"] == one.arm]
        assert one.mean == pytest.approx(np.mean(own))
        assert one.sd == pytest.approx(np.std(own, ddof=1))
        assert one.low is not None
        assert one.high is not None
        assert one.low < np.mean(own) < one.high
    assert sum(sum(use.counts.values()) for use in result.use) == len(rows) * 11


def test_a_model_of_factors_equals_statsmodels(tmp_path: Path) -> None:
    rows = made_rows(4)[2:]
    report = analysed(
        write(tmp_path / "s.csv", rows),
        arm_factors="tree,kind",
        terms="tree,kind,z(session)",
        reference=("tree=elm",),
    )
    regression = report.instruments[0].regression
    assert regression is not None
    formula = "total ~ C(tree, Treatment('elm')) + C(kind, Treatment('base')) + z"
    theirs = by_statsmodels(rows, formula, "ml")
    assert [one.name for one in regression.effects] == [
        "intercept",
        "tree=ash",
        "kind=tuned",
        "z(session)",
    ]
    assert regression.fit.estimates == pytest.approx(theirs.fe_params.to_numpy(), rel=1e-4)
    assert regression.fit.aic == pytest.approx(theirs.aic, rel=1e-6)


def test_length_is_audited_and_held_equal(tmp_path: Path) -> None:
    rows = made_rows(5)
    for row in rows:
        row["words"] = 100 + 40 * sum(row[item] for item in ITEMS)
    report = analysed(write(tmp_path / "s.csv", rows), words_column="words")
    assert {one.scope for one in report.correlations} == {"pooled", "within arms", *ARMS}
    assert all(one.r == pytest.approx(1) for one in report.correlations)
    outcome = report.instruments[0].outcomes[0]
    assert outcome.adjusted is None or outcome.adjusted.omnibus is not None
    assert any(alarm.kind == "length" for alarm in report.alarms)
    noise = np.random.default_rng(0)
    for row in rows:
        row["words"] += int(noise.integers(-900, 900))
    outcome = (
        analysed(write(tmp_path / "t.csv", rows), words_column="words").instruments[0].outcomes[0]
    )
    assert outcome.adjusted is not None
    assert outcome.adjusted.effect.estimate > 0
    held = {(c.first, c.second): c.difference for c in outcome.adjusted.contrasts}
    assert all(
        abs(held[c.first, c.second]) < abs(c.difference)
        for c in outcome.comparison.contrasts
        if abs(c.difference) > 5
    )


def test_a_missing_item_leaves_its_session_out_of_the_total_alone(tmp_path: Path) -> None:
    rows = made_rows(6)
    rows[0]["agenda"] = "N/A"
    (result,) = analysed(write(tmp_path / "s.csv", rows)).instruments
    first = result.outcomes[0].arms[0]
    assert (first.n, first.n_missing) == (23, 1)
    assert first.mean_least is not None and first.mean_most is not None
    low, high = load_instrument("ctrs-ladder").scales["agenda"]
    assert first.mean_most - first.mean_least == pytest.approx((high - low) / 24)
    assert result.use[0].unscored == {"missing": 1}
    assert sum(result.use[1].counts.values()) == len(rows)


def test_columns_with_names_of_their_own_are_mapped(tmp_path: Path) -> None:
    names = {"agenda": "Setting the Agenda", "focus": "Focusing on what matters", "pacing": "Pace!"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in made_rows(7)]
    rows = [{"who" if k == "patient" else k: v for k, v in row.items()} for row in rows]
    path = write(tmp_path / "s.csv", rows)
    with pytest.raises(DataError, match="no column for 1 of 11 items: pacing") as caught:
        analysed(path, patient_column="who")
    assert "Pace!" in str(caught.value.hint)
    report = analysed(path, patient_column="who", item=("Pace!=pacing",))
    assert report.n_sessions == len(rows)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "flags", "error", "words"),
    [
        ({"agenda": 11}, {}, DataError, r"s.csv:2:agenda: 11 is outside 1-10"),
        ({"agenda": "six"}, {}, DataError, "is no number"),
        ({"arm": ""}, {}, DataError, "empty arm"),
        ({"session": "x"}, {}, DataError, "is no number"),
        ({}, {"instrument": ("act-fm",)}, DataError, "no column for 25 of 25 items: stance_1, "),
        ({}, {"baseline": "oak"}, UsageError, "no arm 'oak'"),
        ({}, {"terms": "tree"}, UsageError, "no term 'tree'"),
        ({}, {"terms": "arm", "reference": ("arm=oak",)}, UsageError, "no level 'oak'"),
        ({}, {"reference": ("arm",), "terms": "arm"}, UsageError, "FACTOR=LEVEL"),
        ({}, {"terms": "arm,arm"}, UsageError, "depend on each other"),
        ({"arm": "ashbase"}, {"arm_factors": "tree,kind"}, DataError, "1 parts"),
        ({}, {"item": ("agenda=nothing",)}, UsageError, "COLUMN=item"),
        ({}, {"human": (Path("r.jsonl"),)}, UsageError, "judged study"),
        ({}, {"arm_column": "system"}, DataError, "no column 'system'"),
        ({}, {"by": ("archetype",)}, UsageError, "no attribute 'archetype' of the patients"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_words(
    tmp_path: Path, change: Row, flags: dict[str, Any], error: type[Exception], words: str
) -> None:
    rows = made_rows(8)
    rows[0] |= change
    with pytest.raises(error, match=words):
        analysed(write(tmp_path / "s.csv", rows), **flags)


def test_arms_with_different_patients_are_not_compared_unless_told_how(tmp_path: Path) -> None:
    rows = [r for r in made_rows(9) if (r["arm"], r["patient"]) != ("elm_base", "p3")]
    path = write(tmp_path / "s.csv", rows)
    with pytest.raises(DataError, match="elm_base lacks p3"):
        analysed(path)
    report = analysed(path, common_patients=True)
    assert report.n_patients == 7
    assert any("1 patients are left out" in alarm.text for alarm in report.alarms)


def test_one_arm_or_equal_scores_give_no_model_and_say_why(tmp_path: Path) -> None:
    rows = [row for row in made_rows(10) if row["arm"] == "elm_base"]
    outcome = analysed(write(tmp_path / "s.csv", rows)).instruments[0].outcomes[0]
    assert outcome.comparison.reason == "there is one arm"
    assert outcome.published.omnibus is None
    assert outcome.comparison.contrasts == outcome.published.contrasts == ()
    flat = [row | dict.fromkeys(ITEMS, 4) for row in made_rows(11)]
    report = analysed(write(tmp_path / "t.csv", flat))
    outcome = report.instruments[0].outcomes[0]
    assert outcome.published.fit is None
    assert "no variation" in str(outcome.published.no_fit_reason)
    assert "nothing varies" in str(outcome.comparison.reason)
    assert {"no_model", "one_value", "ceiling"} <= {alarm.kind for alarm in report.alarms}
    two = made_rows(12, n_patients=1)
    outcome = analysed(write(tmp_path / "u.csv", two)).instruments[0].outcomes[0]
    assert "two groups" in str(outcome.published.no_fit_reason)
    assert "1 patient in an arm" in str(outcome.comparison.reason)
    assert all(one.low is None and one.reason for one in outcome.arms)


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_holds_page_figures_and_methods_and_asks_nobody(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", made_rows(13))
    report, out = run_analysis(settings_of(path, out=tmp_path / "out", title="<b>Mine</b>"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Mine&lt;/b&gt;" in page
    assert "<b>Mine" not in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    for alarm in report.alarms:
        assert alarm.text.replace("'", "&#39;") in page
    assert json.loads((out / "analysis.json").read_text())["n_sessions"] == 96
    with (out / "contrasts.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 6
    with (out / "scores.csv").open(encoding="utf-8") as stream:
        totals = [row for row in csv.DictReader(stream) if row["total"] == "total"]
    assert len(totals) == 96
    methods = (out / "methods.md").read_text(encoding="utf-8")
    assert "Wald chi-square" in methods
    assert "patients as random units" in methods
    assert "closed form" in methods
    assert (out / "manifest.json").exists()


def test_the_same_analysis_twice_gives_the_same_files(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", made_rows(14))
    for name in ("a", "b"):
        run_analysis(settings_of(path, out=tmp_path / name))
    for file in ("report.html", "analysis.json", "scores.csv", "contrasts.csv", "methods.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_command_prints_one_object_or_tables(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", made_rows(15))
    words = ["analyse", str(path), "--instrument", "ctrs-ladder", "--bootstrap", "0"]
    words += ["--out", str(tmp_path / "o"), "--arm-factors", "tree,kind", "--terms", "tree,kind"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["arms"] == list(ARMS)
    shown = CliRunner().invoke(app, words)
    assert "ash_tuned" in shown.stdout
    assert "kind=tuned" in shown.stdout
    assert "arms, patients random: F(" in shown.stderr
    assert "as published" in shown.stderr
    assert "χ²(3)" in shown.stderr


@pytest.mark.parametrize("n", [2, 4])
def test_few_patients_are_described_and_no_p_is_printed(tmp_path: Path, n: int) -> None:
    path = write(tmp_path / "s.csv", made_rows(16, n_patients=n))
    words = ["analyse", str(path), "--instrument", "ctrs-ladder", "--terms", "arm"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "o")])
    reason = f"{n} patients in an arm, fewer than 5: described only"
    assert f"arms are not tested: {reason}" in done.stderr
    assert f"no interval and no p: {reason}" in done.stderr
    assert "χ²" not in done.stderr
    assert "< 0.0001" not in done.stdout
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "fewer than 5" in page
    assert "p &lt; 0.0001" not in page
    assert not re.search(r"p (?:=|&lt;|<) 0", page)
    found = json.loads((tmp_path / "o" / "analysis.json").read_text(encoding="utf-8"))
    (outcome,) = found["instruments"][0]["outcomes"]
    assert outcome["comparison"]["test"]["p"] is None
    assert outcome["comparison"]["contrasts"] == outcome["published"]["contrasts"] == []
    assert outcome["published"]["omnibus"] is outcome["adjusted"] is None
    assert [one["p"] for one in found["instruments"][0]["regression"]["effects"]] == [None] * 4


def test_five_patients_are_tested(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", made_rows(16, n_patients=5))
    assert analysed(path).instruments[0].outcomes[0].comparison.test.p is not None


def test_sessions_that_stand_twice_make_no_test_surer(tmp_path: Path) -> None:
    rows = made_rows(17, n_patients=5)
    settings = {"terms": "arm"}
    once = analysed(write(tmp_path / "a.csv", rows), **settings).instruments[0]
    twice = analysed(write(tmp_path / "b.csv", rows * 2), **settings).instruments[0]
    first, second = (one.outcomes[0].comparison for one in (once, twice))
    assert first.test.p == pytest.approx(second.test.p)
    assert once.regression is not None
    assert twice.regression is not None
    for a, b in zip(once.regression.effects, twice.regression.effects, strict=True):
        assert a.p == pytest.approx(b.p, rel=1e-6)
    published = [one.outcomes[0].published.omnibus for one in (once, twice)]
    assert published[0] is not None
    assert published[1] is not None
    assert published[1].chi2 > 1.5 * published[0].chi2


def test_intervals_of_means_end_where_the_instrument_ends(tmp_path: Path) -> None:
    rows = [row | dict.fromkeys(ITEMS, 10) for row in made_rows(18, n_patients=3)]
    for row in rows:
        row["agenda"] = 1 if row["patient"] == "p0" else 9
        row["focus"] = 9 if row["session"] == 1 else 10
    (result,) = analysed(write(tmp_path / "s.csv", rows)).instruments
    assert [one.high for one in result.outcomes[0].arms] == [110] * 4


def test_sessions_at_the_end_of_the_scale_leave_their_mean_without_interval(tmp_path: Path) -> None:
    rows = [row | dict.fromkeys(ITEMS, 10) for row in made_rows(18, n_patients=6)]
    for row in rows:
        row["agenda"] = 4 if row["patient"] in ("p0", "p1", "p2") else 10
    path = write(tmp_path / "s.csv", rows)
    words = ["analyse", str(path), "--instrument", "ctrs-ladder", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, words)
    assert "mean of ash_base: 50% of the sessions are at the end of the scale" in done.stderr


def test_a_mean_of_many_items_is_no_rating_on_a_short_scale(tmp_path: Path) -> None:
    items = [item.id for item in load_instrument("tes").items]
    noise = np.random.default_rng(19)
    rows: list[Row] = [
        {"patient": f"p{i}", "arm": arm, "session": 1}
        | dict(zip(items, noise.integers(2, 4, len(items)).tolist(), strict=True))
        for arm in ("ash", "elm")
        for i in range(6)
    ]
    path = write(tmp_path / "s.csv", rows)
    (result,) = analysed(path, instrument=("tes",)).instruments
    for one in result.outcomes[0].arms:
        assert one.high is not None
        assert one.high < 3.2  # not drawn towards 7, which no session is near


def test_instruments_are_listed_and_shown() -> None:
    listed = CliRunner().invoke(app, ["instruments", "--json"])
    assert {one["id"] for one in json.loads(listed.stdout)["instruments"]} >= {"ctrs", "act-fm"}
    shown = CliRunner().invoke(app, ["instruments", "tes"])
    assert "warmth" in shown.stdout
    assert "Decker" in shown.stderr


# --- the study of arXiv 2412.00251 ---------------------------------------------------------------


@pytest.mark.skipif(SCORES is None, reason="CBTQA_CTRS_SCORES names no file")
def test_what_the_study_did_not_print_is_found_in_its_scores() -> None:
    """What it printed is compared with `papers.yaml` in tests/test_papers.py."""
    report = analysed(Path(SCORES or ""))
    (result,) = report.instruments
    published, found = result.outcomes[0].published, result.outcomes[0].comparison
    assert sum(one.p_adjusted < 0.05 for one in published.contrasts) == 14
    # one arm spreads more than twice as far as the others: the common error finds three too many
    by_common = [one.p_adjusted_common_error or 0.0 for one in found.contrasts]
    assert sum(p < 0.05 for p in by_common) == 9
    assert sum(one.p_adjusted < 0.05 for one in found.contrasts) == 6
    assert clear_pairs(found.contrasts).startswith("6 of 15 pairs at adjusted p < 0.05 (9 on an ")
    assert found.interaction.p is not None
    assert found.interaction.p < 0.01
    assert result.regression is not None
    (session,) = (one for one in result.regression.fit.effects if one.name == "z(session)")
    assert round(session.estimate, 3) == 0.179
    assert f"{result.alpha:.3f}" == "0.909"
    ceiling = next(alarm for alarm in report.alarms if alarm.kind == "ceiling")
    assert ceiling.text == "no item above 7 of 10 in 6,523 ratings; totals cannot pass 77 of 110"
