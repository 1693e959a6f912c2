"""A local page of what a repository would show: its facts, card, access form and first rows.

Built from the files that would be sent and from nothing else; where the scan found something, no
row is shown, so that the page holds no text that would not be published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from markupsafe import Markup

from cbtqa.files import read_rows
from cbtqa.hub.cards import load_gate, split_card
from cbtqa.hub.plan import PlannedFile, PublishPlan
from cbtqa.hub.scan import Finding
from cbtqa.report.page import Head, Phrase, load_wording, render_page, same
from cbtqa.report.table import Column, Estimate, Table
from cbtqa.report.words import number

PACKAGE = "cbtqa.hub"
N_ROWS = 3
SHOWN_FRONT = (
    *("license", "license_name", "base_model", "library_name", "pipeline_tag", "language"),
    *("size_categories", "task_categories", "datasets", "tags"),
)


def preview_page(plan: PublishPlan, findings: Sequence[Finding] = ()) -> str:
    """The page as one HTML document."""
    front, body = split_card(plan.card)
    has_rows = not findings and plan.kind == "dataset"
    return render_page(
        PACKAGE,
        "preview.html.j2",
        Head(same(plan.repo_id), _say("kicker"), _say(f"lede.{plan.kind}"), _say("footer")),
        say=_say,
        plan=plan,
        findings=findings,
        files=Table(
            [_say("columns.file"), _say("columns.bytes")],
            [(file.path, file.n_bytes) for file in plan.files],
        ),
        left_out=Table([_say("columns.left_out"), _say("columns.why")], plan.left_out),
        front=_front(front),
        scores=_scores(front),
        card=_card(body),
        form=load_gate(),
        first_rows=list(_first_rows(plan)) if has_rows else None,
        n_rows=N_ROWS,
    )


def _say(key: str, **values: object) -> Phrase:
    return load_wording(PACKAGE, "preview.yaml")[key].fill(**values)


def _front(front: dict[str, Any]) -> dict[str, list[Any]]:
    shown = {key: front[key] for key in SHOWN_FRONT if front.get(key)}
    return {key: value if isinstance(value, list) else [value] for key, value in shown.items()}


def _scores(front: dict[str, Any]) -> Table:
    rows = [
        (
            metric["name"],
            Estimate(metric["value"], metric["args"]["low"], metric["args"]["high"]),
            Markup("<code>{}</code>").format(metric["args"]["signature"]),
        )
        for model in front.get("model-index", ())
        for result in model["results"]
        for metric in result["metrics"]
    ]
    return Table(["model-index", Column("value [95%]", number), "signature"], rows)


def _card(body: str) -> Markup:
    from markdown_it import MarkdownIt

    # raw HTML in a card is shown, never run
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))


def _first_rows(plan: PublishPlan) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Config, file and first rows of each config, as a viewer would show them."""
    first: dict[str, PlannedFile] = {}
    for file in plan.files:
        if file.path.endswith(".parquet"):
            first.setdefault(file.path.split("/")[0], file)
    for config, file in first.items():
        yield config, file.path, [row for _, row in islice(read_rows(file.source), N_ROWS)]
