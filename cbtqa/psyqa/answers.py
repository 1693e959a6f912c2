"""PsyQA's human answers and their strategy spans as records."""

from __future__ import annotations

import json
from typing import Any

from cbtqa.psyqa.cleaning import clean, move_offset
from cbtqa.records import ReferenceAnswer, StrategySpan

ANSWER_TEXT = ("answer_text", "text", "content", "answer", "回答")


class BadField(Exception):
    """A field that does not fit; never leaves this package, where it becomes a rejection."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem


def as_list(found: object) -> list[Any]:
    """A cell as a list: given as one, as JSON in a CSV cell, as one value, or empty."""
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:  # a list in a CSV cell
            decoded = json.loads(found)
        except (ValueError, RecursionError):
            decoded = found
        found = decoded
    if found is None or found == "":
        return []
    return found if isinstance(found, list) else [found]


def read_answer(found: object, question_id: str, max_chars: int) -> ReferenceAnswer:
    """One answer, given as an object of PsyQA's or as plain text.

    Raises:
        BadField: no text, too much text, or strategy spans that do not fit it.
    """
    labels: object = None
    field, text = "", found
    if isinstance(found, dict):
        field = next((name for name in ANSWER_TEXT if name in found), ANSWER_TEXT[0])
        text, labels = found.get(field), found.get("labels_sequence")
    if not isinstance(text, str):
        raise BadField(field, f"expected text, found {name_of(text)}")
    cleaned, _ = clean(text)
    if not cleaned or len(cleaned) > max_chars:
        raise BadField(field, f"{len(cleaned):,} characters; expected 1 to {max_chars:,}")
    spans = _spans(labels, text, cleaned)
    return ReferenceAnswer(question_id=question_id, text=cleaned, strategies=spans)


def _spans(labels: object, text: str, cleaned: str) -> tuple[StrategySpan, ...]:
    """Strategy spans, moved to where their text stands after cleaning."""
    if not labels:
        return ()
    try:
        found = sorted((span["start"], span["end"], span["type"]) for span in labels)  # type: ignore[attr-defined]
        position = 0
        for start, end, name in found:
            is_whole = type(start) is int and type(end) is int
            if not is_whole or not position <= start < end <= len(text) or not clean(name)[0]:
                raise BadField(
                    "labels_sequence",
                    f"span {start}-{end} is empty, overlaps or leaves the text of {len(text)}",
                )
            position = end
    except (KeyError, TypeError, AttributeError) as error:
        raise BadField("labels_sequence", f"expected start, end, type: {error}") from None
    if cleaned != text:
        found = [(move_offset(text, start), move_offset(text, end), n) for start, end, n in found]
    return tuple(
        StrategySpan(start=start, end=end, type=clean(name)[0])
        for start, end, name in found
        if start < end  # a span of blanks at either end is gone with them
    )


def as_json(value: object) -> str:
    """A decoded value as JSON text that any file can hold."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8


def name_of(value: object) -> str:
    """What a value is, in words for a person."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false"}
    if value is None:
        return "nothing"
    return names.get(type(value), f"the {type(value).__name__} {value!r}"[:60])
