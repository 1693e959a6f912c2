"""From a run to the Hub: plan, scan, preview, and only then the network.

publish(prepare_dataset(DatasetSettings(run=Path("runs/psyqa"), to="my-lab/cbt-qa")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from cbtqa.errors import UsageError
from cbtqa.files import read_rows, write_text
from cbtqa.hub.cards import load_gate, split_card
from cbtqa.hub.client import Hub, find_token, show_progress
from cbtqa.hub.dataset import check_dataset, guard_answers, plan_dataset
from cbtqa.hub.model import plan_model
from cbtqa.hub.modelscope import ModelScopeHub, find_modelscope_token
from cbtqa.hub.plan import STAGING, PlannedFile, PublishPlan
from cbtqa.hub.scan import Finding, refuse_findings, scan_plan
from cbtqa.hub.settings import (
    NO_REPOSITORY,
    DatasetSettings,
    ModelSettings,
    PublishSettings,
    RepoId,
)
from cbtqa.hub.upload import Uploaded, upload
from cbtqa.llm.batch import OnProgress
from cbtqa.paths import refuse_existing
from cbtqa.records import Tabular
from cbtqa.report.page import Head, Phrase, load_wording, render_page, same
from cbtqa.report.table import Column, Estimate, Table
from cbtqa.report.words import number
from cbtqa.settings import Settings

N_ROWS = 3
SHOWN_FRONT = (
    *("license", "license_name", "base_model", "library_name", "pipeline_tag", "language"),
    *("size_categories", "task_categories", "datasets", "tags"),
)


@dataclass(frozen=True)
class Prepared(Tabular):
    """A plan and what the scan found in it; no network was touched."""

    plan: PublishPlan
    settings: PublishSettings
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**self.plan.summary(), "card": self.plan.card, "sent": False}

    def write_preview(self, path: Path | None = None, *, overwrite: bool = False) -> Path:
        """Writes the page, by default among the run's own; UsageError for a file that is there."""
        target = path or self.settings.run / STAGING / "preview.html"
        if not target.suffix:  # a browser opens a page by its suffix
            target = target.with_name(f"{target.name}.html")
        if path is not None:
            refuse_existing(target, overwrite=overwrite)
        write_text(target, preview_page(self.plan, self.findings))
        return target


def prepare_dataset(
    settings: DatasetSettings, on_progress: OnProgress | None = None, *, asks: bool = True
) -> Prepared:
    """The plan of a dataset with what scan and guard find.

    Args:
        asks: False leaves the guard out: a dry run touches no network.
    """
    plan, watch = plan_dataset(settings)
    findings = check_dataset(plan, watch, settings)
    if asks:
        unsafe, remarks = guard_answers(settings, on_progress)
        findings, plan = [*findings, *unsafe], replace(plan, remarks=(*plan.remarks, *remarks))
    return Prepared(plan, settings, tuple(findings))


def prepare_model(settings: ModelSettings) -> Prepared:
    plan, watch = plan_model(settings)
    return Prepared(plan, settings, tuple(scan_plan(plan, watch)))


def publish(
    prepared: Prepared,
    *,
    endpoint: str | None = None,
    with_bars: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Uploaded:
    """Uploads what was prepared, privately; see `upload.upload` for its errors.

    Args:
        endpoint: of a mirror or a private Hub; HF_ENDPOINT (MODELSCOPE_ENDPOINT) or the public
            site by default.
        with_bars: let the Hub's library draw progress bars on stderr.
    """
    refuse_findings(prepared.findings)
    settings = prepared.settings
    if settings.to == NO_REPOSITORY:
        raise UsageError("no repository named", hint="add --to OWNER/NAME, or --dry-run")
    hub: Hub | ModelScopeHub
    if settings.site == "modelscope":
        token = find_modelscope_token()
        hub = ModelScopeHub(token, settings.to, prepared.plan.kind, endpoint=endpoint)
    else:
        hub = Hub(find_token(), settings.to, prepared.plan.kind, endpoint=endpoint)
        show_progress(with_bars)
    return upload(
        prepared.plan,
        hub,
        run=settings.run,
        tag=settings.tag,
        allow_public=settings.allow_public,
        on_stage=on_stage,
    )


class PreviewSettings(Settings):
    """Settings of `cbtqa hub-preview`; `cbtqa publish ... --dry-run` takes every flag."""

    run: Path
    """Folder of the finished run: a dataset, an adapter, a model."""
    to: RepoId = NO_REPOSITORY
    """Repository that the card names."""
    out: Path | None = None
    """Page to write. Default: publish/preview.html in the run."""
    overwrite: bool = False
    """Replace the file of --out."""
    ratings: tuple[Path, ...] = ()
    """Folder that `cbtqa rate report` wrote. May be repeated."""
    notes: Path | None = None
    """Markdown file added to the card."""
    quotes: Literal["refuse", "mask"] = "refuse"
    """Datasets: what happens to answers that repeat their question."""
    base: str | None = None
    """Models: the base as owner/name@revision."""
    scores: tuple[Path, ...] = ()
    """Models: folder that `cbtqa score --out` wrote. May be repeated."""


def holds_weights(folder: Path) -> bool:
    return any(any(folder.glob(kind)) for kind in ("*.safetensors", "*.bin"))


def prepare_preview(settings: PreviewSettings) -> Prepared:
    def given(model: type[PublishSettings]) -> dict[str, Any]:
        return settings.model_dump(include=set(model.model_fields))

    if holds_weights(settings.run):
        return prepare_model(ModelSettings(**given(ModelSettings)))
    return prepare_dataset(DatasetSettings(**given(DatasetSettings)))


def preview_page(plan: PublishPlan, findings: Sequence[Finding] = ()) -> str:
    """The repository as an HTML page, made only from the files that would be sent.

    Where the scan found something, no row is shown: the page holds no text that would not be
    published.
    """
    front, body = split_card(plan.card)
    shown = {key: front[key] for key in SHOWN_FRONT if front.get(key)}
    has_rows = not findings and plan.kind == "dataset"
    return render_page(
        "cbtqa.hub",
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
        front={key: v if isinstance(v, list) else [v] for key, v in shown.items()},
        scores=_scores(front),
        card=_card(body),
        form=load_gate(),
        first_rows=list(_first_rows(plan)) if has_rows else None,
        n_rows=N_ROWS,
    )


def _say(key: str, **values: object) -> Phrase:
    return load_wording("cbtqa.hub", "preview.yaml")[key].fill(**values)


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
