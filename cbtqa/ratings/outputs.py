"""Files of an analysis, for a paper and for the next program; systems are named as in the study.

report.json       every figure of the page
ratings.jsonl     one `answers.Rating` a line, open ones included
heds.md           datasheet, prefilled
methods.md        methods paragraph, zh and en
adjudication.csv  labels on which raters differ (rubrics with marks)
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from cbtqa.files import replacing, write_json, write_jsonl, write_text
from cbtqa.ratings.answers import Answer, make_ratings
from cbtqa.ratings.documents import datasheet_text, methods_text
from cbtqa.ratings.results import Disagreement, StudyReport
from cbtqa.ratings.sheets import escape_formula
from cbtqa.ratings.study import StudyFolder


def write_outputs(
    out: Path,
    folder: StudyFolder,
    answers: Mapping[str, Answer],
    report: StudyReport,
    sources: list[str],
) -> None:
    """Writes all files but the page, each whole or not at all."""
    write_json(out / "report.json", report)
    write_jsonl(out / "ratings.jsonl", make_ratings(folder, answers))
    write_text(out / "heds.md", datasheet_text(folder, report, sources))
    paragraphs = [methods_text(folder, report, language) for language in ("zh", "en")]
    write_text(out / "methods.md", "\n\n".join(paragraphs) + "\n")
    if folder.rubric.marks:
        with replacing(out / "adjudication.csv") as temporary:
            _write_adjudication(temporary, folder, report.disagreements)


def _write_adjudication(path: Path, folder: StudyFolder, found: tuple[Disagreement, ...]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["item", "question", "text", "label", "yes", "no", "evidence", "decision"])
        for one in found:
            quoted = "; ".join(f"{rater}: {text}" for rater, text in one.evidence.items())
            text = "\n".join(folder.items[one.item_id].parts.values())
            row = (one.item_id, one.question_id, text, one.criterion)
            cells = [*row, " ".join(one.yes), " ".join(one.no), quoted, ""]
            writer.writerow([escape_formula(cell) for cell in cells])
