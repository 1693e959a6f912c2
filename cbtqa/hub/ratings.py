"""Human ratings for publishing: what `cbtqa rate report` wrote, less what could identify or quote.

Notes and quoted evidence are free text of raters and questions: they stay behind. Raters are R1,
R2, ...; any other name of a rater is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json, read_jsonl
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.ratings.answers import Rating
from cbtqa.ratings.results import StudyReport
from cbtqa.report.page import Phrase
from cbtqa.report.table import Cell, Estimate, Table
from cbtqa.statistics.agreement import Coefficient

if TYPE_CHECKING:
    import pyarrow as pa

REPORT_NAME, RATINGS_NAME = "report.json", "ratings.jsonl"
RATER = re.compile(r"R\d{1,4}")
SUMMARY_SPLIT = "summary"
FREE_TEXT = {"note", "evidence"}


@dataclass(frozen=True)
class RatedStudy:
    report: StudyReport
    ratings_path: Path

    def rows(self) -> Iterator[Rating]:
        """Every rating, open ones included; PublishRefusedError for a rater that is not R1, R2."""
        for row in read_jsonl(self.ratings_path, Rating):
            if not RATER.fullmatch(row.rater):
                raise PublishRefusedError(
                    f"{self.ratings_path} names a rater; only R1, R2, ... are published",
                    hint="replace the names in the file by R1, R2, ...",
                )
            yield row


def read_study(folder: Path) -> RatedStudy:
    """A folder of `cbtqa rate report`; PublishRefusedError while its systems are letters."""
    path, ratings_path = folder / REPORT_NAME, folder / RATINGS_NAME
    for needed in (path, ratings_path):
        if not needed.exists():
            hint = "make it with: cbtqa rate report STUDY"
            raise DataError(f"no {needed.name} in it", where=str(folder), hint=hint)
    report = parse_record(StudyReport, read_json(path), str(path))
    if report.is_blind:
        raise PublishRefusedError(
            f"{path}: the systems of study {report.study_id} are letters still",
            hint="cbtqa rate unblind STUDY --key KEY --by NAME, then cbtqa rate report STUDY",
        )
    return RatedStudy(report=report, ratings_path=ratings_path)


def _schema(columns: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])


@cache
def rating_schema() -> pa.Schema:
    """Columns of the config `ratings`: one row an item, rater and criterion."""
    names = ("study", "rubric", "item_id", "question_id", "system", "rater", "criterion")
    return _schema(
        {
            **dict.fromkeys(names, "string"),
            **dict.fromkeys(("value", "low", "high"), "int64"),
            "unrated_reason": "string",
            "is_crisis": "bool",
            "order": "int64",
            "repeat": "int64",
            "phase": "string",
            "seconds": "float64",
        }
    )


def rating_row(report: StudyReport, rating: Rating) -> dict[str, Any]:
    of_rating = rating.model_dump(exclude=FREE_TEXT)
    return {"study": report.study_id, "rubric": report.rubric, **of_rating}


@cache
def summary_schema() -> pa.Schema:
    """Columns of the config `ratings_summary`: one row a study, system and criterion."""
    counts = ("n_questions", "n_raters", "n_ratings", "n_open", "n_cannot_judge")
    return _schema(
        {
            **dict.fromkeys(("study", "rubric", "system", "criterion"), "string"),
            **dict.fromkeys(counts, "int64"),
            **dict.fromkeys(("mean", "low", "high", "sd"), "float64"),
            "agreement_name": "string",
            **dict.fromkeys(("agreement", "agreement_low", "agreement_high"), "float64"),
            "agreement_reason": "string",
        }
    )


def summary_rows(report: StudyReport) -> Iterator[dict[str, Any]]:
    for score in report.scores:
        alpha = _alpha(report, score.criterion)
        agreement = {
            f"agreement_{name}": getattr(alpha, name, None)
            for name in ("name", "low", "high", "reason")
        }
        yield {
            "study": report.study_id,
            "rubric": report.rubric,
            "n_raters": report.n_raters,
            **score.model_dump(exclude={"counts", "n_raters", "raw_mean", "df", "reason"}),
            **agreement,
            "agreement": alpha.value if alpha else None,
        }


def _alpha(report: StudyReport, criterion: str) -> Coefficient | None:
    """Krippendorff's alpha of a criterion, the first of its coefficients."""
    found = next((one for one in report.agreement if one.criterion == criterion), None)
    return found.coefficients[0] if found and found.coefficients else None


def card_table(studies: Iterable[RatedStudy]) -> Table | None:
    """Systems with means and agreement on each criterion; None without any."""
    names = {"系统": "system", "标准": "criterion", "均值": "mean", "评分数": "ratings"}
    heads = [Phrase(zh=zh, en=en) for zh, en in (*names.items(), ("一致性", "agreement"))]
    rows: list[tuple[Cell, ...]] = []
    for study in studies:
        for score in study.report.scores:
            alpha = _alpha(study.report, score.criterion)
            name = f"{score.criterion} ({study.report.rubric})"
            mean = Estimate(score.mean, score.low, score.high)
            agreed = Estimate.of(alpha) if alpha else None
            rows.append((score.system, name, mean, score.n_ratings, agreed))
    return Table(heads, rows) if rows else None
