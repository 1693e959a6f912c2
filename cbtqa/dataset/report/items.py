"""What a report shows of single items: crisis handling, what was left out, examples."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from cbtqa.dataset.report.material import Material, known_phrase, say
from cbtqa.dataset.stats import COLUMNS, sample_key
from cbtqa.dataset_folder import REJECTS_NAME, DatasetFolder
from cbtqa.files import read_jsonl
from cbtqa.records import STEP_NAMES, Rejection
from cbtqa.report.page import Phrase, same
from cbtqa.report.words import count

RAW_CUT = 300
"""Characters shown of a rejected text."""
EXAMPLES_PER_REASON = 2
CRISIS_HANDLING = ("split", "keep", "drop")


def crisis_handling(material: Material) -> Phrase:
    """What was done with questions that show a sign of risk."""
    handling = material.setting("crisis")
    return say(f"risk.handling.{handling if handling in CRISIS_HANDLING else 'unknown'}")


def reject_groups(material: Material) -> list[dict[str, object]]:
    """Every reason with its number and up to two examples."""
    examples: dict[str, list[Rejection]] = {}
    path = material.folder / REJECTS_NAME
    for rejection in read_jsonl(path, Rejection) if path.exists() else ():
        found = examples.setdefault(rejection.reason.value, [])
        if len(found) < EXAMPLES_PER_REASON:
            found.append(rejection)
    rejected: dict[str, int] = material.manifest.counts.get("rejected", {})
    return [
        {
            "name": say(f"reasons.{reason}"),
            "n": n,
            "examples": [_reject_example(item) for item in examples.get(reason, ())],
        }
        for reason, n in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    ]


def _reject_example(rejection: Rejection) -> dict[str, object]:
    raw, cut = rejection.raw or "", None
    if not raw:
        cut = say("rejects.no_raw")
    elif len(raw) > RAW_CUT:
        cut = say("rejects.cut_at", n=count(len(raw)), cut=RAW_CUT)
    shown = rejection.model_dump(include={"item_id", "detail", "where"})
    return {**shown, "raw": raw[:RAW_CUT], "cut": cut}


def example_of(material: Material, split: str, row: dict[str, Any]) -> dict[str, object]:
    labels: list[dict[str, object]] = []
    quotes: list[tuple[str, int]] = []
    for label in row["distortions"]:
        if label["evidence"]:
            quotes.append((label["evidence"], len(quotes) + 1))
        name = material.label_names.get(label["id"], same(label["id"]))
        labels.append({"name": name, "number": len(quotes) if label["evidence"] else None})
    description = str(row["description"] or "")
    in_title = [quote for quote in quotes if quote[0] not in description]
    steps = [(say(f"texts.{name}"), row[name]) for name in STEP_NAMES if row[name]]
    return {
        "id": row["id"],
        "title": mark_evidence(str(row["question"]), in_title),
        "description": mark_evidence(description, quotes),
        "labels": labels,
        "steps": steps or [(say("examples.whole"), row["answer"])],
        "split": known_phrase("splits", split),
        "risk": graded_phrase(str(row["risk"]), row["dangers"] or ()),
        "keywords": "、".join(row["keywords"] or ()),
    }


# --- choice of examples --------------------------------------------------------------------------
# The choice depends on ids and a seed alone: of a random pool the entries are taken that add
# most that was not seen yet (types, risk, split, length), so that a report does not flatter.

POOL_SIZE = 400


def choose_examples(
    folder: DatasetFolder, n: int = 10, seed: int = 0
) -> list[tuple[str, dict[str, Any]]]:
    """`(split, row)` of up to `n` varied entries of a dataset, the same for the same seed."""
    ids = (row["id"] for row in folder.rows(columns=("id",)))
    wanted = heapq.nsmallest(POOL_SIZE, ids, key=lambda one: sample_key(one, f"examples {seed}"))
    places = {item_id: place for place, item_id in enumerate(wanted)}
    pool = [
        (split, row) for split in folder.splits for row in folder.rows(split, COLUMNS, set(wanted))
    ]
    return _most_varied(sorted(pool, key=lambda entry: places[entry[1]["id"]]), n)


def _most_varied(
    pool: Sequence[tuple[str, dict[str, Any]]], n: int
) -> list[tuple[str, dict[str, Any]]]:
    """Takes, again and again, the first entry with the most features seen least often so far."""
    left = list(pool)
    chosen: list[tuple[str, dict[str, Any]]] = []
    seen: Counter[str] = Counter()
    while left and len(chosen) < n:
        best = max(left, key=lambda entry: sum((1 + seen[f]) ** -2 for f in _features(*entry)))
        left.remove(best)
        chosen.append(best)
        seen.update(_features(*best))
    return chosen


def _features(split: str, row: dict[str, Any]) -> list[str]:
    """What an entry shows; about as many for every entry, so that no kind wins by its number."""
    labels = sorted({label["id"] for label in row["distortions"]})
    length = min(len(row["description"]) // 100, 4)
    return [
        f"label {labels[0] if labels else 'none'}",
        f"n_labels {len(labels)}",
        f"risk {row['risk']}",
        f"split {split}",
        f"length {length}",
        *(f"topic {word}" for word in row["keywords"][:1]),
    ]


def graded_phrase(risk: str, dangers: Sequence[str]) -> Phrase:
    """The risk of a question, or its other dangers where it has none but these."""
    kinds = [known_phrase("dangers", kind) for kind in dangers]
    parts = [known_phrase("risk", risk), *kinds] if risk != "none" or not kinds else kinds
    return Phrase(zh="；".join(p.zh for p in parts), en="; ".join(p.en for p in parts))


def mark_evidence(text: str, quotes: Sequence[tuple[str, int]]) -> Markup:
    """The text with quoted spans marked and numbered; everything else escaped.

    Args:
        quotes: `(verbatim span, number)`; a span is marked where it first occurs. Overlapping
            spans become one mark with both numbers.
    """
    spans: list[tuple[int, int, list[int]]] = []
    for quote, place in sorted(quotes, key=lambda item: (text.find(item[0]), -len(item[0]))):
        start = text.find(quote) if quote else -1
        if start < 0:
            continue
        end = start + len(quote)
        if spans and start < spans[-1][1]:
            first, last, numbers = spans[-1]
            spans[-1] = (first, max(last, end), sorted({*numbers, place}))
        else:
            spans.append((start, end, [place]))
    parts, position = [], 0
    for start, end, numbers in spans:
        parts.append(escape(text[position:start]))
        tag = Markup("<sup>{}</sup>").format(",".join(map(str, numbers)))
        parts.append(Markup("<mark>{}{}</mark>").format(text[start:end], tag))
        position = end
    parts.append(escape(text[position:]))
    return Markup("").join(parts)
