"""A local page of what a repository would show: its facts, card, access form and first rows.

Built from the files that would be sent and from nothing else; where the scan found something, no
row is shown, so that the page holds no text that would not be published.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from markupsafe import Markup

from cbtqa.files import read_rows
from cbtqa.hub.cards import load_gate, split_card
from cbtqa.hub.plan import PlannedFile, PublishPlan
from cbtqa.hub.scan import Finding
from cbtqa.report.page import (
    Block,
    Items,
    Notice,
    Page,
    Phrase,
    Section,
    Table,
    Text,
    load_wording,
    render_fragment,
    render_page,
    same,
)

PACKAGE = "cbtqa.hub"
N_ROWS = 3
CELL_CHARS = 160
"""Longest text shown of one value."""
SHOWN_FRONT = (
    *("license", "license_name", "base_model", "library_name", "pipeline_tag", "language"),
    *("size_categories", "task_categories", "datasets", "tags"),
)


def preview_page(plan: PublishPlan, findings: Sequence[Finding] = ()) -> str:
    """The page as one HTML document."""
    front, body = split_card(plan.card)
    sections = [
        Section(_say("sections.files"), _files(plan), "files"),
        Section(_say("sections.card"), (_front(front), _card(body)), "card"),
    ]
    if plan.gate != "none":
        sections.append(Section(_say("sections.gate"), (_gate(plan),), "gate"))
    if not findings and plan.kind == "dataset":
        sections.append(Section(_say("sections.rows"), _rows(plan), "rows"))
    return render_page(
        Page(
            title=same(plan.repo_id),
            kicker=_say("kicker"),
            lede=_say(f"lede.{plan.kind}"),
            opening=(_verdict(findings),),
            sections=tuple(sections),
            footer=_say("footer"),
        )
    )


def _say(key: str, **values: object) -> Phrase:
    return load_wording(PACKAGE, "preview.yaml")[key].fill(**values)


def _verdict(findings: Sequence[Finding]) -> Block:
    if not findings:
        return Notice(_say("verdict.passed"), (_say("verdict.passed_text"),))
    shown = [same(f"{finding.where}: {finding.what}") for finding in findings[:20]]
    return Notice(_say("verdict.refused", n=len(findings)), tuple(shown))


def _files(plan: PublishPlan) -> tuple[Block, ...]:
    rows = [[file.path, f"{file.n_bytes:,}"] for file in plan.files]
    columns = [_say("columns.file"), _say("columns.bytes")]
    blocks: list[Block] = [
        Text(_say("visibility", gate=_say(f"gates.{plan.gate}").zh)),
        Table(columns, rows),
    ]
    if plan.remarks:
        blocks.append(Items(tuple(same(remark) for remark in plan.remarks)))
    if plan.left_out:
        left = [[path, why] for path, why in plan.left_out[:40]]
        columns = [_say("columns.left_out"), _say("columns.why")]
        blocks.append(Table(columns, left, n_text=2))
    return tuple(blocks)


def _front(front: dict[str, Any]) -> Block:
    shown = {}
    for key in SHOWN_FRONT:
        value = front.get(key)
        if value:
            shown[key] = value if isinstance(value, list) else [value]
    scores = [
        (metric["name"], metric["value"], metric["args"])
        for model in front.get("model-index", ())
        for result in model["results"]
        for metric in result["metrics"]
    ]
    return render_fragment(PACKAGE, "front.html.j2", "zh", front=shown, scores=scores)


def _card(body: str) -> Block:
    from markdown_it import MarkdownIt

    # raw HTML in a card is shown, never run
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    html = Markup(markdown.renderer.render(tokens, markdown.options, {}))
    return render_fragment(PACKAGE, "card.html.j2", "zh", html=html)


def _gate(plan: PublishPlan) -> Block:
    return render_fragment(PACKAGE, "gate.html.j2", "zh", form=load_gate(), gate=plan.gate)


def _rows(plan: PublishPlan) -> tuple[Block, ...]:
    """The first rows of each config, as a viewer would show them."""
    first: dict[str, PlannedFile] = {}
    for file in plan.files:
        if file.path.endswith(".parquet"):
            first.setdefault(file.path.split("/")[0], file)
    blocks: list[Block] = [Text(_say("rows.note", n=N_ROWS), is_note=True)]
    for config, file in first.items():
        rows = [row for _, row in islice(read_rows(file.source), N_ROWS)]
        entries = [[(name, _cell(value)) for name, value in row.items()] for row in rows]
        blocks.append(
            render_fragment(
                PACKAGE, "rows.html.j2", "zh", config=config, path=file.path, rows=entries
            )
        )
    return tuple(blocks)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= CELL_CHARS else f"{text[:CELL_CHARS]}…"
