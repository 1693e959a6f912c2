"""Settings of `cbtqa publish` and `cbtqa hub-preview`, with the help text of each flag."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, field_validator, model_validator

from cbtqa.llm.checked_files import AskingSettings
from cbtqa.llm.second_opinion import GuardSettings
from cbtqa.settings import Settings

Gate = Literal["manual", "auto", "none"]
Site = Literal["hub", "modelscope"]
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def _checked_id(value: str) -> str:
    if not REPO_ID.fullmatch(value) or "--" in value or ".." in value:
        raise ValueError("expected owner/name, such as my-lab/cbt-qa")
    return value


RepoId = Annotated[str, AfterValidator(_checked_id)]
"""A repository of the Hub: owner/name."""
NO_REPOSITORY = "owner/name"
"""In a card that names no repository yet."""


class RepositorySettings(Settings):
    """Where it goes, and who may read it."""

    panel: ClassVar[str] = "Repository"
    site: Site = "hub"
    """Where: hub (the Hugging Face Hub) or modelscope (needs the extra of that name)."""
    gate: Gate = "manual"
    """Who may read once it is public: manual (you approve each person), auto (who fills in the
    form), none."""
    allow_public: bool = False
    """Also write to a repository that is public already."""
    tag: str | None = None
    """Name of the version. Default: v1, v2, ... A tag is never moved."""


class CardSettings(Settings):
    panel: ClassVar[str] = "Card"
    contact: str | None = None
    """Where to write for questions and takedown: an address or a link. Default: the repository's
    discussions."""
    notes: Path | None = None
    """Markdown file added to the card, such as ethics approval and funding."""
    ratings: tuple[Path, ...] = ()
    """Folder that `cbtqa rate report` wrote. May be repeated."""


class CheckSettings(Settings):
    """What is compared with the files before they leave."""

    panel: ClassVar[str] = "What must not leave"
    source: Path | None = None
    """PsyQA file: nothing is published that repeats its questions or human answers."""
    encoding: str = "utf-8"
    """Encoding of --source."""
    column: tuple[str, ...] = ()
    """Name a column of --source: question=title. May be repeated."""
    first_turn: bool = False
    """--source holds conversations: what the client says first is the question."""
    names: Path | None = None
    """File with names that must not appear, one a line, such as the raters'."""


class PublishSettings(RepositorySettings, CardSettings, CheckSettings):
    """What datasets and models share."""

    run: Path
    """Folder of the finished run."""
    to: RepoId = NO_REPOSITORY
    """Repository on the Hub, or on --site: owner/name. Only a dry run goes without."""

    @model_validator(mode="after")
    def _site_has_the_gate(self) -> PublishSettings:
        if self.site == "modelscope" and self.gate == "auto":
            raise ValueError("ModelScope has no --gate auto: take manual or none")
        return self

    @field_validator("tag")
    @classmethod
    def _is_tag(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value, re.ASCII):
            raise ValueError("expected letters, digits, '.', '-' or '_', such as v1.0")
        return value


class DatasetCardSettings(Settings):
    panel: ClassVar[str] = "Card"
    label_quality: Path | None = None
    """JSON that `cbtqa distortions evaluate --json` printed, for the card."""


class SourceTextSettings(Settings):
    panel: ClassVar[str] = "What must not leave"
    include_source_text: bool = False
    """Also publish questions, descriptions, keywords and quoted evidence. Needs --permission;
    recorded in the manifest."""
    permission: Path | None = None
    """File that permits publishing the questions. Its name and hash are recorded, the file itself
    is not uploaded."""
    permission_until: str | None = None
    """Last day of the permission, such as 2027-05-18."""
    quotes: Literal["refuse", "mask"] = "refuse"
    """Answers that repeat long stretches of their question: refuse to publish, or mask them
    (`cbtqa join` puts the words back)."""
    withhold_crisis: bool = False
    """Leave out entries whose question shows a sign of risk (counted in the card)."""


class DatasetSettings(
    PublishSettings, DatasetCardSettings, SourceTextSettings, GuardSettings, AskingSettings
):
    """`cbtqa publish dataset`."""

    @field_validator("permission_until", mode="before")
    @classmethod
    def _is_day(cls, value: object) -> str | None:
        # YAML files give dates, flags give text
        return None if value is None else datetime.date.fromisoformat(str(value)).isoformat()

    @model_validator(mode="after")
    def _permission_fits(self) -> DatasetSettings:
        if self.permission and not self.include_source_text:
            raise ValueError("--permission only makes sense with --include-source-text")
        return self


class ModelCardSettings(Settings):
    panel: ClassVar[str] = "Card"
    base: str | None = None
    """Base model as owner/name@revision (commit or tag). Default: what the run recorded."""
    converted: bool | None = None
    """The base was converted with `cbtqa convert` before training. Default: what the run
    recorded."""
    licence: str | None = None
    """Licence of the base as the Hub names it, such as apache-2.0. Default: other, deferring to
    the base."""
    licence_file: tuple[Path, ...] = ()
    """Licence and notice files of the base; needed for merged weights unless they lie in the run.
    May be repeated."""
    dataset: tuple[str, ...] = ()
    """Training dataset on the Hub: owner/name. May be repeated."""
    scores: tuple[Path, ...] = ()
    """Folder that `cbtqa score --out` wrote. May be repeated."""
    benchmark: str | None = None
    """Benchmark on the Hub whose test set --scores used: owner/name or owner/name@COMMIT. Writes
    `.eval_results/`, a task each metric."""
    system: str | None = None
    """Name of this model in scores and ratings. Default: the only system there."""


class ModelSettings(PublishSettings, ModelCardSettings):
    """`cbtqa publish model`."""

    @field_validator("dataset")
    @classmethod
    def _are_repositories(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_id(value) for value in values)

    @model_validator(mode="after")
    def _benchmark_has_its_scores(self) -> ModelSettings:
        if self.benchmark is not None:
            _checked_id(self.benchmark.partition("@")[0])
            if len(self.scores) != 1:
                raise ValueError("--benchmark goes with exactly one --scores")
        return self
