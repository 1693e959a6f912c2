"""What can be set for `cbtqa publish` and `cbtqa hub-preview`, with the help text of each flag."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic.config import JsonDict

from cbtqa.settings import Settings

_CARD: JsonDict = {"panel": "Card"}
_CHECKS: JsonDict = {"panel": "What must not leave"}
_TARGET: JsonDict = {"panel": "Repository"}
Gate = Literal["manual", "auto", "none"]
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def _checked_id(value: str) -> str:
    if not REPO_ID.fullmatch(value) or "--" in value or ".." in value:
        raise ValueError("expected owner/name, such as my-lab/cbt-qa")
    return value


RepoId = Annotated[str, AfterValidator(_checked_id)]
"""A repository of the Hub: owner/name."""
NO_REPOSITORY = "owner/name"
"""Stands in a card where no repository is named yet."""


class PublishSettings(Settings):
    """What datasets and models share."""

    run: Path
    """Folder of the finished run."""
    to: RepoId = NO_REPOSITORY
    """Repository on the Hub: owner/name. Only a dry run goes without."""
    gate: Gate = Field("manual", json_schema_extra=_TARGET)
    """Who may read once it is public: manual (you approve each person), auto (who fills in the
    form), none."""
    allow_public: bool = Field(False, json_schema_extra=_TARGET)
    """Also write to a repository that is public already."""
    tag: str | None = Field(None, json_schema_extra=_TARGET)
    """Name of the version. Default: v1, v2, ... A tag is never moved."""
    contact: str | None = Field(None, json_schema_extra=_CARD)
    """Where to write for questions and takedown: an address or a link. Default: the repository's
    discussions."""
    notes: Path | None = Field(None, json_schema_extra=_CARD)
    """Markdown file added to the card, such as ethics approval and funding."""
    ratings: tuple[Path, ...] = Field((), json_schema_extra=_CARD)
    """Folder that `cbtqa rate report` wrote. May be repeated."""
    source: Path | None = Field(None, json_schema_extra=_CHECKS)
    """PsyQA file: nothing is published that repeats its questions or human answers."""
    encoding: str = Field("utf-8", json_schema_extra=_CHECKS)
    """Encoding of --source."""
    column: tuple[str, ...] = Field((), json_schema_extra=_CHECKS)
    """Name a column of --source: question=title. May be repeated."""
    names: Path | None = Field(None, json_schema_extra=_CHECKS)
    """File with names that must not appear, one a line, such as the raters'."""

    @field_validator("tag")
    @classmethod
    def _is_tag(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value, re.ASCII):
            raise ValueError("expected letters, digits, '.', '-' or '_', such as v1.0")
        return value


class DatasetSettings(PublishSettings):
    """`cbtqa publish dataset`."""

    include_source_text: bool = Field(False, json_schema_extra=_CHECKS)
    """Also publish questions, descriptions, keywords and quoted evidence. Needs --permission;
    recorded in the manifest."""
    permission: Path | None = Field(None, json_schema_extra=_CHECKS)
    """File that permits publishing the questions. Its name and hash are recorded, the file itself
    is not uploaded."""
    permission_until: str | None = Field(None, json_schema_extra=_CHECKS)
    """Last day of the permission, such as 2027-05-18."""
    quotes: Literal["refuse", "mask"] = Field("refuse", json_schema_extra=_CHECKS)
    """Answers that repeat long stretches of their question: refuse to publish, or mask them
    (`cbtqa join` puts the words back)."""
    withhold_crisis: bool = Field(False, json_schema_extra=_CHECKS)
    """Leave out entries whose question shows a sign of risk (counted in the card)."""
    label_quality: Path | None = Field(None, json_schema_extra=_CARD)
    """JSON that `cbtqa distortions evaluate --json` printed, for the card."""

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


class ModelSettings(PublishSettings):
    """`cbtqa publish model`."""

    base: str | None = Field(None, json_schema_extra=_CARD)
    """Base model as owner/name@revision (commit or tag). Default: what the run recorded."""
    converted: bool | None = Field(None, json_schema_extra=_CARD)
    """The base was converted with `cbtqa convert` before training. Default: what the run
    recorded."""
    licence: str | None = Field(None, json_schema_extra=_CARD)
    """Licence of the base as the Hub names it, such as apache-2.0. Default: other, deferring to
    the base."""
    licence_file: tuple[Path, ...] = Field((), json_schema_extra=_CARD)
    """Licence and notice files of the base; needed for merged weights unless they lie in the run.
    May be repeated."""
    dataset: tuple[str, ...] = Field((), json_schema_extra=_CARD)
    """Training dataset on the Hub: owner/name. May be repeated."""
    scores: tuple[Path, ...] = Field((), json_schema_extra=_CARD)
    """Folder that `cbtqa score --out` wrote. May be repeated."""
    system: str | None = Field(None, json_schema_extra=_CARD)
    """Name of this model in scores and ratings. Default: the only system there."""

    @field_validator("dataset")
    @classmethod
    def _are_repositories(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_id(value) for value in values)
