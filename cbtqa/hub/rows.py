"""The columns of a published dataset, and how a row of a built dataset becomes one of them.

Without permission no row holds words of a question: `question_sha256` says which text belongs to
it, `evidence_start` and `evidence_end` where in it a label rests, `quotes` which words of it were
masked in the answer. Offsets count code points of the question, a newline and the description, as
`records.Question.source_text` joins them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cbtqa.dataset_folder import (
    INTEGER,
    NUMBER,
    TEXT,
    Feature,
    answer_features,
    list_of,
    type_label,
    types_of,
)
from cbtqa.distortions.taxonomy import shipped_concepts
from cbtqa.hub.source_text import mask_quotes
from cbtqa.records import STEP_NAMES

SOURCE_COLUMNS = ("question", "description", "keywords")
"""The columns with the source's own text."""
NOT_PUBLISHED = (*SOURCE_COLUMNS, "distortions", "endpoint_host")
"""Columns of a built dataset that `qa` lacks; hosts would tell where somebody computes."""
MASKED_COLUMNS = ("answer", *STEP_NAMES)


def source_hash(source_text: str) -> str:
    """The hash that ties a published row to the question text it was made from."""
    return hashlib.sha256(source_text.encode()).hexdigest()


def source_text_of(row: Mapping[str, Any]) -> str:
    """Question and description as `Question.source_text` joins them."""
    question, description = row["question"], row["description"]
    return f"{question}\n{description}" if description else str(question)


def qa_features(types: Sequence[str], has_source_text: bool) -> dict[str, Feature]:
    """Columns of the config `qa`."""
    built = answer_features(types)
    source = {name: built[name] for name in SOURCE_COLUMNS} if has_source_text else {}
    quote = {"column": TEXT, "start": INTEGER, "end": INTEGER}
    return {
        "id": TEXT,
        "question_sha256": TEXT,
        **source,
        **{name: feature for name, feature in built.items() if name not in NOT_PUBLISHED},
        "labels": list_of(TEXT),
        "quotes": list_of(quote),
    }


def label_features(types: Sequence[str], has_source_text: bool) -> dict[str, Feature]:
    """Columns of the config `distortions`: one row a label."""
    return {
        "id": TEXT,
        "question_sha256": TEXT,
        "label": type_label(types),
        "label_zh": TEXT,
        "label_en": TEXT,
        "labeller": TEXT,
        "confidence": NUMBER,
        "evidence_start": INTEGER,
        "evidence_end": INTEGER,
        **({"evidence": TEXT} if has_source_text else {}),
    }


def qa_row(row: Mapping[str, Any], *, has_source_text: bool, masks: bool) -> dict[str, Any]:
    """A row of `qa_features`.

    Args:
        row: a row of `answer_features`.
        masks: replace words of the question in the answer by `quotes.MASK`.

    Raises:
        ValueError: masks were asked for and the answer holds a mask already.
    """
    source_text = source_text_of(row)
    made = {name: value for name, value in row.items() if name not in NOT_PUBLISHED}
    if has_source_text:
        made |= {name: row[name] for name in SOURCE_COLUMNS}
    made["question_sha256"] = source_hash(source_text)
    made["labels"] = types_of(label["id"] for label in row["distortions"])
    made["quotes"] = []
    if masks and not has_source_text:
        for name in MASKED_COLUMNS:
            if row[name] is not None:
                made[name], found = mask_quotes(row[name], source_text)
                made["quotes"] += [
                    {"column": name, "start": quote.start, "end": quote.end} for quote in found
                ]
    return made


def label_rows(row: Mapping[str, Any], *, has_source_text: bool) -> Iterator[dict[str, Any]]:
    """The labels of a question as rows of `label_features`."""
    source_text = source_text_of(row)
    concepts = shipped_concepts()
    for label in row["distortions"]:
        evidence = label["evidence"]
        start = source_text.find(evidence) if evidence else -1
        known = concepts.get(label["id"])
        made = {
            "id": row["id"],
            "question_sha256": source_hash(source_text),
            "label": label["id"],
            "label_zh": known.zh if known else None,
            "label_en": known.en if known else None,
            "labeller": label["labeller"],
            "confidence": label["confidence"],
            "evidence_start": start if start >= 0 else None,
            "evidence_end": start + len(evidence) if start >= 0 else None,
        }
        yield {**made, "evidence": evidence} if has_source_text else made
