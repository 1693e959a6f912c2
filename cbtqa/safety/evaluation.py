"""Compares the screen with a gold file: per grade, with intervals and the errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cbtqa.errors import DataError, UsageError
from cbtqa.records import Record, Risk
from cbtqa.safety.encoder import open_encoder
from cbtqa.safety.screen import ScreenLanguage, screen_each
from cbtqa.safety.survey import read_texts

GRADES: tuple[Risk, ...] = get_args(Risk)
_Z = 1.959964  # two-sided 95 %


class Share(Record):
    """A share with its 95 % Wilson interval; all None when there is nothing to count."""

    n: int
    n_total: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


class GradeScores(Record):
    """How well one grade (or everything from it upwards) is found."""

    recall: Share
    precision: Share
    f1: float | None


class ScreenError(Record):
    """One disagreement with the gold."""

    where: str
    gold: Risk
    found: Risk
    text: str
    rules: tuple[str, ...]
    """Rules of all hits, with the outcome of those that did not count."""


class ScreenEvaluation(Record):
    """The comparison; `signature` holds what can change it."""

    n_texts: int
    n_empty: int
    """Rows without a text; they are left out."""
    confusion: dict[Risk, dict[Risk, int]]
    """gold -> found -> count."""
    explicit: GradeScores
    flagged: GradeScores
    """Concern and explicit taken together."""
    per_grade: dict[Risk, GradeScores]
    errors: tuple[ScreenError, ...]
    signature: str


def evaluate_file(
    path: Path,
    *,
    columns: Sequence[str] = (),
    label_column: str = "risk",
    grade_of: Mapping[str, Risk] | None = None,
    language: ScreenLanguage = "auto",
    screen_model: str | None = None,
    encoding: str = "utf-8",
) -> ScreenEvaluation:
    """Screens every row of a gold file and counts agreement.

    Args:
        grade_of: the grade that each label of the file means; None takes grades by name.
        screen_model: an encoder that reads the texts as well; see `encoder.open_encoder`.

    Raises:
        DataError: see `survey.read_texts`; also a missing or unknown label.
    """
    labels: Mapping[str, Risk] = grade_of or {str(grade): grade for grade in GRADES}
    pairs: Counter[tuple[Risk, Risk]] = Counter()
    errors = []
    n_empty = 0
    model = open_encoder(screen_model)
    items = read_texts(path, columns, encoding)
    for item, screening in screen_each(items, lambda item: item.text, language, model):
        if item.is_empty:
            n_empty += 1
            continue
        gold = _gold(item.row, label_column, labels, item.where)
        pairs[gold, screening.risk] += 1
        if gold != screening.risk:
            rules = tuple(
                hit.rule if hit.risk != "none" else f"{hit.rule} ({hit.outcome})"
                for hit in screening.hits
            )
            known = {"where": item.where, "text": item.text}
            errors.append(ScreenError(**known, gold=gold, found=screening.risk, rules=rules))
    screens = "rules+model" + (f"+{model.described}" if model else "")
    mapped = ",".join(f"{label}={grade}" for label, grade in sorted(labels.items()))
    return ScreenEvaluation(
        n_texts=pairs.total(),
        n_empty=n_empty,
        confusion={gold: {found: pairs[gold, found] for found in GRADES} for gold in GRADES},
        explicit=_scores(pairs, {"explicit"}),
        flagged=_scores(pairs, {"concern", "explicit"}),
        per_grade={grade: _scores(pairs, {grade}) for grade in GRADES},
        errors=tuple(errors),
        signature=f"screen:{screens}|language:{language}|labels:{mapped}|interval:wilson95",
    )


def _gold(row: Mapping[str, Any], column: str, labels: Mapping[str, Risk], where: str) -> Risk:
    if column not in row:
        found = f"no column '{column}' among {sorted(row)}"
        raise DataError(found, where=where, hint="--label-column NAME")
    label = str(row[column]).strip()
    if label not in labels:
        hint = "name every label's grade: --label 1=explicit --label 0=none"
        found = f"label '{label}' is none of {sorted(labels)}"
        raise DataError(found, where=f"{where}:{column}", hint=hint)
    return labels[label]


def parse_labels(words: Sequence[str]) -> dict[str, Risk]:
    """`["1=explicit", "0=none"]` as a mapping.

    Raises:
        UsageError: a word is not LABEL=GRADE.
    """
    labels: dict[str, Risk] = {}
    for word in words:
        label, _, grade = word.rpartition("=")
        known = next((one for one in GRADES if one == grade), None)
        if not label or known is None:
            raise UsageError(f"'{word}' is not LABEL=GRADE with a grade of {', '.join(GRADES)}")
        labels[label] = known
    return labels


def _scores(pairs: Counter[tuple[Risk, Risk]], positive: set[Risk]) -> GradeScores:
    hit = sum(n for (gold, found), n in pairs.items() if gold in positive and found in positive)
    n_gold = sum(n for (gold, _), n in pairs.items() if gold in positive)
    n_found = sum(n for (_, found), n in pairs.items() if found in positive)
    f1 = 2 * hit / (n_gold + n_found) if n_gold and n_found else None
    return GradeScores(recall=share(hit, n_gold), precision=share(hit, n_found), f1=f1)


def share(n: int, n_total: int) -> Share:
    """n of n_total with its Wilson interval. Source: Wilson 1927, JASA 22:209."""
    if n_total == 0:
        return Share(n=n, n_total=0)
    p, z2 = n / n_total, _Z * _Z
    centre = (p + z2 / (2 * n_total)) / (1 + z2 / n_total)
    half = _Z * math.sqrt(p * (1 - p) / n_total + z2 / (4 * n_total**2)) / (1 + z2 / n_total)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Share(n=n, n_total=n_total, value=p, low=low, high=high)
