"""Sections that show single items: risk and crisis handling, what was left out, examples."""

from __future__ import annotations

from typing import Any

from cbtqa.dataset.report.examples import choose_examples, mark_evidence
from cbtqa.dataset.report.material import PACKAGE, Material, known_phrase, number, percent, say
from cbtqa.files import read_jsonl
from cbtqa.records import STEP_NAMES, Rejection
from cbtqa.report.page import (
    Block,
    Cell,
    Fragment,
    Items,
    Notice,
    Table,
    Text,
    render_fragment,
)
from cbtqa.report.wording import Phrase, same
from cbtqa.safety.hotlines import help_text
from cbtqa.safety.notices import Wording, load_notices

RAW_CUT = 300
"""Characters shown of a rejected text."""
EXAMPLES_PER_REASON = 2
CRISIS_HANDLING = ("split", "keep", "drop")


def crisis_handling(material: Material) -> Phrase:
    """What was done with questions that show a sign of risk."""
    handling = material.setting("crisis")
    return say(f"risk.handling.{handling if handling in CRISIS_HANDLING else 'unknown'}")


def risk(material: Material) -> list[Block]:
    """Entries by risk, and how crisis questions were handled."""
    statistics = material.statistics
    rows: list[list[Cell]] = [
        [known_phrase("risk", name), number(n), percent(n / statistics.n_entries)]
        for name, n in statistics.risk.items()
    ]
    dropped = material.manifest.counts.get("rejected", {}).get("crisis_dropped", 0)
    if dropped:
        rows.append([say("reasons.crisis_dropped"), number(dropped), "–"])
    columns = [say(f"columns.{name}") for name in ("risk", "entries", "share")]
    return [
        Text(crisis_handling(material)),
        Table(columns, rows),
        Text(say("risk.note"), is_note=True),
        Notice(say("risk.help"), (Phrase(zh=help_text("zh", "page"), en=help_text("en", "page")),)),
    ]


def use(material: Material) -> list[Block]:
    """Intended and forbidden use, and the notices that PsyQA's agreement asks for."""
    notices = load_notices()
    blocks: list[Block] = [
        Text(_phrase(notices.intended_use)),
        Text(say("use.forbidden")),
        Items(tuple(_phrase(entry) for entry in notices.forbidden_use)),
    ]
    if material.is_bundled_sample:
        return [*blocks, Text(say("use.invented"), is_note=True)]
    required = tuple(_phrase(entry) for entry in notices.required)
    return [*blocks, Text(say("use.required")), Items(required)]


def _phrase(wording: Wording) -> Phrase:
    return Phrase(zh=wording.zh, en=wording.en)


def rejects(material: Material) -> list[Block]:
    """Every reason with its number and up to two examples."""
    examples: dict[str, list[Rejection]] = {}
    path = material.folder / "rejects.jsonl"
    for rejection in read_jsonl(path, Rejection) if path.exists() else ():
        found = examples.setdefault(rejection.reason.value, [])
        if len(found) < EXAMPLES_PER_REASON:
            found.append(rejection)
    rejected: dict[str, int] = material.manifest.counts.get("rejected", {})
    if not rejected:
        return [Text(say("rejects.none"))]
    groups = [
        {
            "name": say(f"reasons.{reason}"),
            "n": n,
            "examples": [_reject_example(item) for item in examples.get(reason, ())],
        }
        for reason, n in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    ]
    fragment = render_fragment(PACKAGE, "rejects.html.j2", material.lang, groups=groups)
    return [Text(say("rejects.note", cut=RAW_CUT)), fragment]


def _reject_example(rejection: Rejection) -> dict[str, object]:
    raw = rejection.raw or ""
    return {
        "item_id": rejection.item_id,
        "detail": rejection.detail,
        "where": rejection.where,
        "raw": raw[:RAW_CUT],
        "cut": say("rejects.cut_at", n=number(len(raw)), cut=RAW_CUT)
        if len(raw) > RAW_CUT
        else None
        if raw
        else say("rejects.no_raw"),
    }


def examples(material: Material) -> list[Block]:
    """Ten varied entries in full."""
    chosen = choose_examples(material.folder)
    return [
        Text(say("examples.note", n=len(chosen))),
        *(_example(material, split, row) for split, row in chosen),
    ]


def _example(material: Material, split: str, row: dict[str, Any]) -> Fragment:
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
    return render_fragment(
        PACKAGE,
        "example.html.j2",
        material.lang,
        row=row,
        title=mark_evidence(str(row["question"]), in_title),
        description=mark_evidence(description, quotes),
        labels=labels,
        steps=steps or [(say("examples.whole"), row["answer"])],
        split=known_phrase("splits", split),
        risk=known_phrase("risk", str(row["risk"])),
        keywords="、".join(row["keywords"] or ()),
        no_label=say("examples.no_label"),
        no_evidence=say("examples.no_evidence"),
    )
