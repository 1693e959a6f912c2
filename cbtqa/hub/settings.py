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


class PublishSettings(Settings):
    """What datasets and models share."""

    run: Path = Field(description="Folder of the finished run.")
    to: RepoId = Field(description="Repository on the Hub: owner/name.")
    gate: Gate = Field(
        "manual",
        description="Who may read once it is public: manual (you approve each person), auto (who "
        "fills in the form), none.",
        json_schema_extra=_TARGET,
    )
    allow_public: bool = Field(
        False,
        description="Also write to a repository that is public already.",
        json_schema_extra=_TARGET,
    )
    tag: str | None = Field(
        None,
        description="Name of the version. Default: v1, v2, ... A tag is never moved.",
        json_schema_extra=_TARGET,
    )
    contact: str | None = Field(
        None,
        description="Where to write for questions and takedown: an address or a link. Default: "
        "the repository's discussions.",
        json_schema_extra=_CARD,
    )
    notes: Path | None = Field(
        None,
        description="Markdown file added to the card, such as ethics approval and funding.",
        json_schema_extra=_CARD,
    )
    ratings: tuple[Path, ...] = Field(
        (),
        description="Folder that `cbtqa rate report` wrote. May be repeated.",
        json_schema_extra=_CARD,
    )
    source: Path | None = Field(
        None,
        description="PsyQA file: nothing is published that repeats its questions or human answers.",
        json_schema_extra=_CHECKS,
    )
    encoding: str = Field("utf-8", description="Encoding of --source.", json_schema_extra=_CHECKS)
    column: tuple[str, ...] = Field(
        (),
        description="Name a column of --source: question=title. May be repeated.",
        json_schema_extra=_CHECKS,
    )
    names: Path | None = Field(
        None,
        description="File with names that must not appear, one a line, such as the raters'.",
        json_schema_extra=_CHECKS,
    )

    @field_validator("tag")
    @classmethod
    def _is_tag(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value, re.ASCII):
            raise ValueError("expected letters, digits, '.', '-' or '_', such as v1.0")
        return value


class DatasetSettings(PublishSettings):
    """`cbtqa publish dataset`."""

    include_source_text: bool = Field(
        False,
        description="Also publish questions, descriptions, keywords and quoted evidence. Needs "
        "--permission; recorded in the manifest.",
        json_schema_extra=_CHECKS,
    )
    permission: Path | None = Field(
        None,
        description="File that permits publishing the questions. Its name and hash are recorded, "
        "the file itself is not uploaded.",
        json_schema_extra=_CHECKS,
    )
    permission_until: str | None = Field(
        None,
        description="Last day of the permission, such as 2027-05-18.",
        json_schema_extra=_CHECKS,
    )
    quotes: Literal["refuse", "mask"] = Field(
        "refuse",
        description="Answers that repeat long stretches of their question: refuse to publish, or "
        "mask them (`cbtqa join` puts the words back).",
        json_schema_extra=_CHECKS,
    )
    withhold_crisis: bool = Field(
        False,
        description="Leave out entries whose question shows a sign of risk (counted in the card).",
        json_schema_extra=_CHECKS,
    )
    label_quality: Path | None = Field(
        None,
        description="JSON that `cbtqa distortions evaluate --json` printed, for the card.",
        json_schema_extra=_CARD,
    )

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

    base: str | None = Field(
        None,
        description="Base model as owner/name@revision (commit or tag). Default: what the run "
        "recorded.",
        json_schema_extra=_CARD,
    )
    converted: bool | None = Field(
        None,
        description="The base was converted with `cbtqa convert` before training. Default: what "
        "the run recorded.",
        json_schema_extra=_CARD,
    )
    licence: str | None = Field(
        None,
        description="Licence of the base as the Hub names it, such as apache-2.0. Default: "
        "other, deferring to the base.",
        json_schema_extra=_CARD,
    )
    licence_file: tuple[Path, ...] = Field(
        (),
        description="Licence and notice files of the base; needed for merged weights unless they "
        "lie in the run. May be repeated.",
        json_schema_extra=_CARD,
    )
    dataset: tuple[str, ...] = Field(
        (),
        description="Training dataset on the Hub: owner/name. May be repeated.",
        json_schema_extra=_CARD,
    )
    scores: tuple[Path, ...] = Field(
        (),
        description="Folder that `cbtqa score --out` wrote. May be repeated.",
        json_schema_extra=_CARD,
    )
    system: str | None = Field(
        None,
        description="Name of this model in scores and ratings. Default: the only system there.",
        json_schema_extra=_CARD,
    )

    @field_validator("dataset")
    @classmethod
    def _are_repositories(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_id(value) for value in values)
