"""From a run to the Hub: plan, scan, and only then the network.

prepared = prepare_dataset(DatasetSettings(run=Path("runs/psyqa"), to="my-lab/cbt-qa"))
publish(prepared, on_stage=print)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cbtqa.errors import UsageError
from cbtqa.files import write_text
from cbtqa.hub.client import Hub, find_token, show_progress
from cbtqa.hub.dataset import check_dataset, plan_dataset
from cbtqa.hub.model import plan_model
from cbtqa.hub.plan import STAGING, PublishPlan
from cbtqa.hub.preview import preview_page
from cbtqa.hub.scan import Finding, refuse_findings, scan_plan
from cbtqa.hub.settings import (
    NO_REPOSITORY,
    DatasetSettings,
    ModelSettings,
    PublishSettings,
    RepoId,
)
from cbtqa.hub.upload import Uploaded, upload
from cbtqa.records import Tabular
from cbtqa.settings import Settings

PREVIEW_NAME = "preview.html"


@dataclass(frozen=True)
class Prepared(Tabular):
    """A plan and what the scan found in it; no network was touched."""

    plan: PublishPlan
    settings: PublishSettings
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan: repository, files, card, what stays behind."""
        return {**self.plan.summary(), "card": self.plan.card, "sent": False}

    def write_preview(self, path: Path | None = None) -> Path:
        """Writes the page that shows the plan; returns where."""
        target = path or self.settings.run / STAGING / PREVIEW_NAME
        write_text(target, preview_page(self.plan, self.findings))
        return target


def prepare_dataset(settings: DatasetSettings) -> Prepared:
    """Plans and scans a dataset; see `dataset.plan_dataset` for what it raises."""
    plan, watch = plan_dataset(settings)
    return Prepared(plan, settings, tuple(check_dataset(plan, watch, settings)))


def prepare_model(settings: ModelSettings) -> Prepared:
    """Plans and scans a model; see `model.plan_model` for what it raises."""
    plan, watch = plan_model(settings)
    return Prepared(plan, settings, tuple(scan_plan(plan, watch)))


def publish(
    prepared: Prepared,
    *,
    endpoint: str | None = None,
    with_bars: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Uploaded:
    """Uploads what was prepared, privately.

    Args:
        endpoint: of a mirror or a private Hub; HF_ENDPOINT or the public Hub by default.
        with_bars: let the Hub's library draw progress bars on stderr.

    Raises:
        UsageError: no repository was named.
        PublishRefusedError: the scan found something, or the repository is public.
        EndpointError: see `upload.upload`.
    """
    refuse_findings(prepared.findings)
    settings = prepared.settings
    if settings.to == NO_REPOSITORY:
        raise UsageError("no repository named", hint="add --to OWNER/NAME, or --dry-run")
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


# --- preview run ---------------------------------------------------------------------------------
# `cbtqa hub-preview`: the plan of a run with few settings, whatever kind of run it is.


class PreviewSettings(Settings):
    """What `cbtqa hub-preview` can be told; `cbtqa publish ... --dry-run` takes every flag."""

    run: Path
    """Folder of the finished run: a dataset, an adapter, a model."""
    to: RepoId = NO_REPOSITORY
    """Repository that the card names."""
    out: Path | None = None
    """Page to write. Default: publish/preview.html in the run."""
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
    """True for a folder of a model or an adapter."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def prepare_preview(settings: PreviewSettings) -> Prepared:
    """The plan and its findings; raises what planning a publication raises."""
    shared = {"run": settings.run, "to": settings.to, "ratings": settings.ratings}
    if holds_weights(settings.run):
        return prepare_model(
            ModelSettings(
                **shared, notes=settings.notes, base=settings.base, scores=settings.scores
            )
        )
    return prepare_dataset(DatasetSettings(**shared, notes=settings.notes, quotes=settings.quotes))
