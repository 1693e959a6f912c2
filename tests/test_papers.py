"""Which printed cells come out of raw data, which are shown beside ours, which are unknown.

The studies' published files are not part of this project. `CBTQA_CTRS_SCORES` names the scores of
arXiv 2412.00251 (`all_scores_with_patients.csv`), `CBTQA_ACT_SCORES` those of arXiv 2509.09712
(`parsed_evaluation_scores.csv`), `CBTQA_ACT_PATIENTS` its patients
(`standardized_patient_profiles.json`). All are read as they are, without a flag.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.papers import PaperCell, PaperTable, paper_table, papers
from cbtqa.settings import resolve
from cbtqa.simulation.analysis.results import AnalysisReport, InstrumentResult, WinRate
from cbtqa.simulation.analysis.run import analyse
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.statistics.intervals import share_interval

ROOT = Path(__file__).parents[1]
CTRS = os.environ.get("CBTQA_CTRS_SCORES")  # read at import: tests run without CBTQA_*
ACT = os.environ.get("CBTQA_ACT_SCORES")
PATIENTS = os.environ.get("CBTQA_ACT_PATIENTS")
needs_patients = pytest.mark.skipif(
    ACT is None or PATIENTS is None, reason="CBTQA_ACT_SCORES or CBTQA_ACT_PATIENTS names no file"
)
Place = tuple[str, str, str, str]
"""Paper, table, row, column."""
ARMS_OF_ACT = {
    "llama3_3b_instruct": "Instruct-COT",
    "llama3_3b_instruct_no_COT": "Instruct",
    "orpo": "ORPO-COT",
    "orpo_no_COT": "ORPO",
    "sft": "SFT-COT",
    "sft_answer_only": "SFT",
}


def _cells() -> Iterator[tuple[Place, PaperCell | None]]:
    for paper, found in papers().items():
        for name, table in found.tables.items():
            for row, cells in table.rows.items():
                for column, cell in cells.items():
                    yield (paper, name, row, column), cell


def _standings() -> dict[tuple[str, str], dict[str, int]]:
    found: dict[tuple[str, str], Counter[str]] = {}
    for (paper, table, _, _), cell in _cells():
        counts = found.setdefault((paper, table), Counter())
        counts[cell.standing if cell else "unknown"] += 1
    return {place: dict(counts) for place, counts in found.items()}


def test_every_known_cell_is_listed_by_how_it_is_reproduced() -> None:
    assert _standings() == {
        ("cbt-llm", "dataset"): {"beside": 4, "derived": 1, "unknown": 3},
        ("cbt-llm", "distortions"): {"beside": 4, "unknown": 1},
        ("cbt-llm", "scores"): {"beside": 6, "unknown": 14},
        ("cbt-llm", "ratings"): {"beside": 6, "unknown": 6},
        ("tahir-cbt", "arms"): {"raw": 18},
        ("tahir-cbt", "model"): {"raw": 11, "unknown": 9},
        ("tahir-cbt", "fit"): {"raw": 4},
        ("tahir-act", "arms"): {"raw": 30},
        ("tahir-act", "omnibus"): {"raw": 14, "beside": 4},
        ("tahir-act", "contrasts"): {"raw": 4},
        ("tahir-act", "archetypes"): {"raw": 7, "beside": 1},
        ("tahir-act", "subgroups"): {"raw": 4},
        ("tahir-act", "wins"): {"raw": 120},
        ("tahir-act", "forest"): {"beside": 4},
    }


def test_derived_cells_follow_from_the_cells_they_rest_on() -> None:
    dataset, omnibus = paper_table("cbt-llm", "dataset"), paper_table("tahir-act", "omnibus")
    cells = dict(_cells())
    share = (dataset.value("n_distorted") or 0) / (dataset.value("n_entries") or 1)
    followed: dict[Place, float] = {
        ("cbt-llm", "dataset", "share_distorted", "value"): share,
    }
    derived = {place for place, cell in cells.items() if cell and cell.standing == "derived"}
    assert derived == set(followed)
    for total in omnibus.columns:
        chi2, n, k = (omnibus.value(row, total) or 0 for row in ("chi2(5)", "n", "arms"))
        followed["tahir-act", "omnibus", "Cohen's f", total] = math.sqrt(chi2 / (n - k))
    assert not _differing(followed)


def _differing(found: dict[Place, float]) -> list[str]:
    cells = dict(_cells())
    return [
        f"{place}: printed {cell.printed}, found {value}"
        for place, value in found.items()
        if (cell := cells[place]) is None or not cell.is_reproduced(value)
    ]


def _raw_of(paper: str) -> set[Place]:
    return {
        place for place, cell in _cells() if place[0] == paper and cell and cell.standing == "raw"
    }


def _analysed(source: str, **settings: Any) -> AnalysisReport:
    return analyse(resolve(AnalysisSettings, flags={"source": source, **settings}, environ={}))[0]


@pytest.mark.skipif(CTRS is None, reason="CBTQA_CTRS_SCORES names no file")
def test_the_raw_cells_of_the_cbt_study_come_out_of_its_scores() -> None:
    (result,) = _analysed(CTRS or "").instruments
    found: dict[Place, float] = {}
    for arm in result.outcomes[0].arms:
        row = arm.arm.lower().partition("_simulation")[0]
        for column in ("n", "mean", "sd"):
            found["tahir-cbt", "arms", row, column] = getattr(arm, column)
    assert result.regression is not None
    fit = result.regression.fit
    for one in fit.effects:
        values = {"estimate": one.estimate, "low": one.low, "high": one.high, "p": one.p}
        found |= {("tahir-cbt", "model", one.name, name): value for name, value in values.items()}
    fitted = {"n": fit.n, "patient variance": fit.var_group, "scale": fit.var_residual}
    assert fit.aic is not None
    fitted["AIC"] = fit.aic
    found |= {("tahir-cbt", "fit", name, "value"): value for name, value in fitted.items()}
    _is_all(found, {table for _, table, _, _ in _raw_of("tahir-cbt")}, "tahir-cbt")


def _is_all(found: dict[Place, float], tables: set[str], paper: str) -> None:
    """Every raw cell of these tables is found, to the printed digit."""
    wanted = {place for place in _raw_of(paper) if place[1] in tables}
    assert wanted and wanted <= set(found)
    assert not _differing({place: found[place] for place in wanted})


def _columns(report: AnalysisReport) -> Iterator[tuple[str, InstrumentResult]]:
    assert [one.instrument for one in report.instruments] == ["act-fm", "tes"]
    yield from zip(("act_fm", "tes"), report.instruments, strict=True)


@pytest.mark.skipif(ACT is None, reason="CBTQA_ACT_SCORES names no file")
def test_the_raw_cells_of_the_act_study_come_out_of_its_scores() -> None:
    found: dict[Place, float] = {}
    for column, result in _columns(_analysed(ACT or "")):
        outcome, *others = result.outcomes
        for arm in outcome.arms:
            assert arm.mean is not None and arm.sd is not None
            row = ARMS_OF_ACT[arm.arm]
            found["tahir-act", "arms", row, column] = arm.mean
            found["tahir-act", "arms", row, f"{column}_sd"] = arm.sd
        for arm in (one for other in others for one in other.arms):
            found["tahir-act", "arms", ARMS_OF_ACT[arm.arm], "inconsistent"] = arm.mean or 0.0
        model = outcome.published
        assert model.omnibus is not None and model.explained is not None and model.icc is not None
        rows = {"n": outcome.n, "arms": len(outcome.arms), "chi2(5)": model.omnibus.chi2}
        rows |= {"R2 marginal": model.explained.marginal, "ICC": model.icc}
        rows |= {"R2 conditional": model.explained.conditional, "Cohen's f": model.cohen_f or 0.0}
        found |= {("tahir-act", "omnibus", row, column): value for row, value in rows.items()}
        tuned = {"sft", "sft_answer_only"}
        (pair,) = (one for one in model.contrasts if {one.first, one.second} == tuned)
        title = paper_table("tahir-act", "omnibus").columns[column]
        found["tahir-act", "contrasts", title, "difference"] = abs(pair.difference)
        found["tahir-act", "contrasts", title, "p"] = pair.p_adjusted
        assert result.exploration is not None
        for one in result.exploration.wins:
            found |= _wins(one, column)
    _is_all(found, {"arms", "omnibus", "contrasts", "wins"}, "tahir-act")


def _wins(one: WinRate, column: str) -> dict[Place, float]:
    """A pair's cells; where the paper has the pair the other way round, those of the first arm."""
    first, second = ARMS_OF_ACT[one.first], ARMS_OF_ACT[one.second]
    rows = paper_table("tahir-act", "wins").rows
    wins, row = one.wins, f"{second} > {first}"
    if row not in rows:
        wins, row = one.losses, f"{first} > {second}"
    interval = share_interval(wins, one.n)
    assert interval.low is not None and interval.high is not None and one.p is not None
    values = {"": wins / one.n, "_low": interval.low, "_high": interval.high, "_p": one.p}
    return {("tahir-act", "wins", row, f"{column}{end}"): value for end, value in values.items()}


@needs_patients
def test_the_act_study_s_archetypes_come_out_of_its_scores_and_patients() -> None:
    found: dict[Place, float] = {}
    report = _analysed(
        ACT or "",
        patients=PATIENTS,
        by=("archetype_name",),
        terms="arm,archetype_name,arm:archetype_name",
    )
    for column, result in _columns(report):
        assert result.regression is not None and result.exploration is not None
        fit, (divided,) = result.regression.fit, result.exploration.groups
        rows = {"log-likelihood": fit.log_likelihood, "scale": fit.var_residual}
        rows |= {"patient variance": fit.var_group, "intercept": fit.effect("intercept").estimate}
        found |= {("tahir-act", "archetypes", row, column): value for row, value in rows.items()}
        assert divided.published is not None and divided.published.df == 15
        assert divided.published.log_likelihood == pytest.approx(fit.log_likelihood)
        for group in divided.groups:
            n = sum((one.p_adjusted or 1.0) < 0.05 for one in group.pairs)
            found["tahir-act", "subgroups", group.level, column] = n
    _is_all(found, {"archetypes", "subgroups"}, "tahir-act")


def test_a_cell_is_reproduced_when_all_of_its_printed_digits_are() -> None:
    cell = PaperCell(printed="-4.160", source="repository", standing="raw")
    assert cell.is_reproduced(-4.15962) and not cell.is_reproduced(-4.1587)
    assert cell.value == -4.16
    small = PaperCell(printed="5.2e-7", source="repository", standing="raw")
    assert small.is_reproduced(5.195e-7) and not small.is_reproduced(5.3e-7)


def test_a_row_that_lacks_a_column_of_its_table_is_refused() -> None:
    table = {
        "name": "T",
        "source": "summary",
        "standing": "beside",
        "columns": {"a": "A", "b": "B"},
    }
    with pytest.raises(ValueError, match="x has not the columns of its table"):
        PaperTable.model_validate({**table, "rows": {"x": {"a": "1"}}})


def test_no_printed_figure_of_four_digits_stands_anywhere_else_in_the_package() -> None:
    printed = {cell.printed for _, cell in _cells() if cell and len(cell.printed.strip("-0.")) >= 4}
    found = []
    for path in (ROOT / "cbtqa").rglob("*"):
        if path.suffix in (".py", ".yaml", ".j2") and path.name != "papers.yaml":
            numbers = set(re.findall(r"(?<![\w.])-?\d*\.?\d+(?![\w.])", path.read_text("utf-8")))
            found += [f"{path.name}: {one}" for one in sorted(numbers & printed)]
    assert not found, "\n".join(found)
