"""Tables of scores as studies publish them: found without a flag, or refused with all that is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cbtqa.cli.simulate import app
from cbtqa.errors import DataError, UsageError
from cbtqa.manifest import read_manifest
from cbtqa.settings import resolve
from cbtqa.simulation.analysis.results import AnalysisReport
from cbtqa.simulation.analysis.run import analyse, run_analysis
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.instruments import load_instrument

ARMS = ("sft", "sft_answer_only", "orpo", "orpo_no_COT", "llama3_3b_instruct_no_COT")
ARMS = (*ARMS, "llama3_3b_instruct")
KINDS = ("anxious", "doubting")
Row = dict[str, Any]


def act_rows(n_patients: int = 12) -> list[Row]:
    """Invented scores in the columns of arXiv 2509.09712: no patient's name, numbers in its place."""
    rng = np.random.default_rng(5)
    rows = []
    for place, arm in enumerate(ARMS):
        for patient in range(1, n_patients + 1):
            level = 1.2 + 0.1 * place + (0.8 if patient % 2 and place > 2 else 0.0)
            act = np.clip(np.rint(rng.normal(level, 0.7, 25)), 0, 3).astype(int)
            tes = np.clip(np.rint(rng.normal(level + 2, 1.0, 9)), 1, 7).astype(int)
            row: Row = {"session_id": patient, "model_type": arm, "word_count": 900}
            row |= {f"act_fm_item_{k}": int(act[k - 1]) for k in (1, *range(10, 26), *range(2, 10))}
            row |= {f"tes_item_{k}": int(value) for k, value in enumerate(tes, 1)}
            rows.append(row)
    return rows


def cbt_rows(n_patients: int = 5) -> list[Row]:
    """In those of arXiv 2412.00251: items by name, the session's number before a date."""
    rng = np.random.default_rng(6)
    names = [item.name.to("en") for item in load_instrument("ctrs-ladder").items]
    groups = [
        f"{model}_{variant}_Simulation_Nov_6"
        for model in ("Llama", "Qwen")
        for variant in ("Finetune", "Instruct")
    ]
    return [
        {"id": f"{number}_20241102_19", "patient_id": f"p{patient}", "group": group}
        | dict(zip(names, rng.integers(2, 8, len(names)).tolist(), strict=True))
        | {"justifications": "{}"}
        for group in groups
        for patient in range(n_patients)
        for number in (1, 2, 3)
    ]


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def analysed(path: Path, **flags: Any) -> AnalysisReport:
    return analyse(resolve(AnalysisSettings, flags={"source": path, **flags}, environ={}))[0]


def test_the_act_study_s_file_is_read_without_a_flag(tmp_path: Path) -> None:
    rows = act_rows()
    report = analysed(write(tmp_path / "parsed.csv", rows))
    assert [one.instrument for one in report.instruments] == ["act-fm", "tes"]
    act, tes = report.instruments
    own = [row for row in rows if row["model_type"] == "orpo"]
    mean = np.mean([[row[f"tes_item_{k}"] for k in range(1, 10)] for row in own])
    assert tes.outcomes[0].arms[2].mean == pytest.approx(mean)
    # consistent: 3/4 of items 1-4, then 8-10, 14-16 and 20-22, in the order of the form
    weights = {1: 0.75, 2: 0.75, 3: 0.75, 4: 0.75} | dict.fromkeys((8, 9, 10, 14, 15, 16), 1.0)
    weights |= dict.fromkeys((20, 21, 22), 1.0)
    totals = [sum(w * row[f"act_fm_item_{k}"] for k, w in weights.items()) for row in own]
    assert act.outcomes[0].arms[2].mean == pytest.approx(np.mean(totals))
    assert "patient: session_id" in report.reading
    assert "not used: word_count" in report.reading
    assert act.regression is not None
    names = [one.name for one in act.regression.effects]
    assert names[1:4] == ["method=orpo", "method=sft", "thinking=yes"]
    assert names[4:] == ["method=orpo:thinking=yes", "method=sft:thinking=yes"]
    assert report.halo and report.n_patients == 12


def test_the_cbt_study_s_file_is_read_without_a_flag(tmp_path: Path) -> None:
    report = analysed(write(tmp_path / "all_scores.csv", cbt_rows()))
    (result,) = report.instruments
    assert result.instrument == "ctrs-ladder"  # a 7 is on no other ladder
    assert (report.n_sessions, report.n_patients) == (60, 5)
    assert result.regression is not None
    assert result.regression.formula.startswith("total ~ model + variant + z(session) ")
    names = [one.name for one in result.regression.effects]
    assert names == ["intercept", "model=qwen", "variant=instruct", "z(session)"]


def test_a_flag_goes_before_what_is_found(tmp_path: Path) -> None:
    rows = [row | {"who": row["session_id"] % 6} for row in act_rows()]
    path = write(tmp_path / "s.csv", rows)
    report = analysed(path, patient_column="who", instrument=("tes",), terms="method")
    assert report.n_patients == 6
    assert [one.instrument for one in report.instruments] == ["tes"]
    assert report.instruments[0].regression is not None
    assert len(report.instruments[0].regression.effects) == 3


def test_arms_without_a_known_pattern_have_no_factors(tmp_path: Path) -> None:
    names = dict(zip(ARMS, ("oak", "elm", "ash", "fir", "yew", "box"), strict=True))
    rows = [row | {"model_type": names[row["model_type"]]} for row in act_rows()]
    report = analysed(write(tmp_path / "s.csv", rows))
    assert report.instruments[0].regression is None
    assert not any("factors" in one for one in report.reading)


def test_a_rubric_of_one_s_own_with_one_item_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "id: own\nversion: 1\ntitle: {zh: 量表, en: Own}\nsource: invented\nshows: transcript\n"
        "guidelines: {zh: 说明}\nsections: [{id: s, title: {zh: 一}}]\n"
        "totals: [{id: t, name: {zh: 总分}, sections: [s]}]\ncriteria:\n"
        "  - {id: pace, section: s, name: {zh: 一}, question: {zh: 问}, low: 1, high: 5}\n",
        encoding="utf-8",
    )
    rows = [{"client": f"c{k % 6}", "system": "ab"[k // 6], "Pace!": 1 + k % 5} for k in range(12)]
    path = write(tmp_path / "s.csv", rows)
    report = analysed(path, instrument=(str(tmp_path / "own.yaml"),))
    assert "own: 1 columns, Pace! to Pace!" in report.reading
    assert report.instruments[0].exploration is not None


# --- bad input -----------------------------------------------------------------------------------


def test_all_that_is_missing_is_in_one_error(tmp_path: Path) -> None:
    gone = {"session_id", "model_type", "tes_item_2", "tes_item_9", "act_fm_item_25"}
    rows = [{k: v for k, v in row.items() if k not in gone} for row in act_rows()]
    with pytest.raises(DataError) as caught:
        analysed(write(tmp_path / "s.csv", rows))
    text = str(caught.value)
    assert "no column of the patient: patient or patient_id" in text
    assert "no column of the arm: arm or group or model_type" in text
    assert "act-fm: no column for 1 of 25 items: act_fm_item_25" in text
    assert "tes: no column for 2 of 9 items: tes_item_2, tes_item_9" in text


def test_an_instrument_that_lacks_a_numbered_column_is_not_passed_over(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "tes_item_4"} for row in act_rows()]
    path = write(tmp_path / "s.csv", rows)
    with pytest.raises(DataError, match="tes: no column for 1 of 9 items: tes_item_4"):
        analysed(path)
    assert len(analysed(path, instrument=("act-fm",)).instruments) == 1


def test_items_that_two_ladders_have_are_asked_about(tmp_path: Path) -> None:
    rows = [{k: min(v, 6) if isinstance(v, int) else v for k, v in r.items()} for r in cbt_rows()]
    path = write(tmp_path / "s.csv", rows)
    with pytest.raises(UsageError, match=r"the columns and values fit ctrs(-ladder)? and ctrs"):
        analysed(path)
    assert analysed(path, instrument=("ctrs",)).instruments[0].instrument == "ctrs"


def test_a_table_of_something_else_names_the_instruments(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", [{"patient": "a", "arm": "b", "bleu": 3}])
    with pytest.raises(DataError, match=r"no items of an instrument .*act-fm"):
        analysed(path)


# --- groups of patients --------------------------------------------------------------------------


def profiles(path: Path, n: int = 12) -> Path:
    """A list without ids, as the study has it: patient k is the k-th."""
    rows = [
        {"archetype_name": KINDS[k % 2], "style": f"{KINDS[k % 2]} style", "age": 20 + 3 * k}
        for k in range(1, n + 1)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_groups_come_from_a_file_of_patients(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", act_rows())
    report = analysed(path, patients=profiles(tmp_path / "p.json"))
    found = report.instruments[0].exploration
    assert found is not None
    (divided,) = found.groups
    assert (divided.attribute, divided.same_as) == ("archetype_name", ("style",))
    assert [(one.level, one.n_patients) for one in divided.groups] == [
        ("anxious", 6),
        ("doubting", 6),
    ]
    assert divided.interaction.p is not None and divided.interaction.p < 0.05
    assert divided.published is not None and divided.published.df == 5
    for group in divided.groups:
        raw = [one.p for one in group.pairs if one.p is not None]
        adjusted = [one.p_adjusted for one in group.pairs if one.p_adjusted is not None]
        assert len(raw) == len(adjusted) and all(a >= p for a, p in zip(adjusted, raw, strict=True))
    assert found.prediction is not None
    assert {one.name for one in found.prediction.features} == {"arm", "archetype_name", "age"}


def test_groups_come_from_a_column_that_is_named(tmp_path: Path) -> None:
    rows = [row | {"kind": KINDS[row["session_id"] % 2]} for row in act_rows()]
    path = write(tmp_path / "s.csv", rows)
    found = analysed(path, by=("kind",)).instruments[0].exploration
    assert found is not None and [one.attribute for one in found.groups] == ["kind"]
    rows[0]["kind"] = "other"
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match=r"for the same patient"):
        analysed(path, by=("kind",))


def test_small_groups_and_few_patients_are_described_only(tmp_path: Path) -> None:
    rows = [row | {"kind": "rare" if row["session_id"] < 4 else "usual"} for row in act_rows()]
    report = analysed(write(tmp_path / "s.csv", rows), by=("kind",))
    found = report.instruments[0].exploration
    assert found is not None
    (divided,) = found.groups
    assert divided.interaction.p is None and divided.published is None
    rare = divided.groups[0]
    assert rare.n_patients == 3 and all(one.p is None for one in rare.pairs)
    assert all(one.reason == "3 patients, fewer than 5: described only" for one in rare.pairs)
    assert None not in rare.means.values()
    few = analysed(write(tmp_path / "t.csv", act_rows(4))).instruments[0].exploration
    assert few is not None
    assert all(one.rate is not None and one.low is one.p is None for one in few.wins)


def test_a_patient_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", act_rows())
    with pytest.raises(DataError, match=r"no patient 10, 11, 12 \(patients are told by place\)"):
        analysed(path, patients=profiles(tmp_path / "p.json", n=9))
    twice = write(tmp_path / "p.csv", [{"id": 1, "kind": "a"}, {"id": 1, "kind": "b"}])
    with pytest.raises(DataError, match="patient '1' is there twice"):
        analysed(path, patients=twice)


def test_win_rates_count_patients_and_ties(tmp_path: Path) -> None:
    rows = act_rows()
    found = analysed(write(tmp_path / "s.csv", rows)).instruments[1].exploration
    assert found is not None and len(found.wins) == 15

    def mean(arm: str, patient: int) -> float:
        (row,) = (r for r in rows if (r["model_type"], r["session_id"]) == (arm, patient))
        return sum(row[f"tes_item_{k}"] for k in range(1, 10))

    for one in found.wins:
        gaps = [mean(one.second, k) - mean(one.first, k) for k in range(1, 13)]
        assert (one.wins, one.losses) == (sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
        assert one.rate == pytest.approx(one.wins / 12)
        assert one.low is not None and one.high is not None and one.low < one.rate < one.high


# --- the command ---------------------------------------------------------------------------------


def test_without_out_a_table_is_shown_and_no_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.csv", act_rows())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["analyse", "s.csv", "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["instruments"]) == 2
    shown = CliRunner().invoke(app, ["analyse", "s.csv"])
    assert "read as patient: session_id" in shown.stderr
    assert "no folder was written" in shown.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_holds_wins_and_groups(tmp_path: Path) -> None:
    flags = {
        "source": write(tmp_path / "s.csv", act_rows()),
        "patients": profiles(tmp_path / "p.json"),
        "out": tmp_path / "out",
    }
    report, out = run_analysis(resolve(AnalysisSettings, flags=flags, environ={}))
    assert out is not None
    with (out / "wins.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 30
    with (out / "groups.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 60
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How the table was read: patient: session_id" in page
    assert "Means by archetype_name" in page
    assert "groups of patients by archetype_name" in (out / "methods.md").read_text("utf-8")
    assert {one.name for one in read_manifest(out).inputs} == {"s.csv", "p.json"}
    assert report.reading
