"""`cbtqa hub-preview`: the plan of a run with few settings, whatever kind of run it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cbtqa.hub.publish import Prepared, prepare_dataset, prepare_model
from cbtqa.hub.settings import DatasetSettings, ModelSettings, RepoId
from cbtqa.settings import Settings


class PreviewSettings(Settings):
    """What `cbtqa hub-preview` can be told; `cbtqa publish ... --dry-run` takes every flag."""

    run: Path = Field(description="Folder of the finished run: a dataset, an adapter, a model.")
    to: RepoId = Field("owner/name", description="Repository that the card names.")
    out: Path | None = Field(
        None, description="Page to write. Default: publish/preview.html in the run."
    )
    ratings: tuple[Path, ...] = Field(
        (), description="Folder that `cbtqa rate report` wrote. May be repeated."
    )
    notes: Path | None = Field(None, description="Markdown file added to the card.")
    quotes: Literal["refuse", "mask"] = Field(
        "refuse", description="Datasets: what happens to answers that repeat their question."
    )
    base: str | None = Field(None, description="Models: the base as owner/name@revision.")
    scores: tuple[Path, ...] = Field(
        (), description="Models: folder that `cbtqa score --out` wrote. May be repeated."
    )


def prepare_preview(settings: PreviewSettings) -> Prepared:
    """The plan and its findings; raises what planning a publication raises."""
    shared = {"run": settings.run, "to": settings.to, "ratings": settings.ratings}
    if any(settings.run.glob("*.safetensors")) or any(settings.run.glob("*.bin")):
        return prepare_model(
            ModelSettings(
                **shared, notes=settings.notes, base=settings.base, scores=settings.scores
            )
        )
    return prepare_dataset(DatasetSettings(**shared, notes=settings.notes, quotes=settings.quotes))
