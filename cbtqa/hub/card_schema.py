"""What the front matter of a card may hold: checked here, since the Hub's library checks nothing
until it is online.

Source: the Hub's dataset and model card specifications; lists are cut to what cbtqa writes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cbtqa.errors import DataError, faults_of
from cbtqa.hub.settings import REPO_ID
from cbtqa.records import NonEmptyText

Task = Literal["question-answering", "text-generation", "text-classification"]
Creator = Literal["machine-generated", "expert-generated", "found"]
LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "openrail", "other"),
    }
)
"""The Hub's names of licences that backbones of this field come under."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataFiles(_Strict):
    split: Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*$")]
    path: Annotated[str, StringConstraints(pattern=r"^[\w/-]+\*?[\w.-]*\.parquet$")]


class Config(_Strict):
    config_name: Annotated[str, StringConstraints(pattern=r"^[^<>:/\\|?*]+$")]
    default: bool | None = None
    data_files: tuple[DataFiles, ...] = Field(min_length=1)


class Select(_Strict):
    type: Literal["select"]
    options: tuple[str, ...] = Field(min_length=2)


Answer = Literal["text", "checkbox", "date_picker", "country"] | Select
"""How a line of the access form is filled in."""


class _Front(_Strict):
    language: tuple[Literal["zh", "en"], ...] = Field(min_length=1)
    license: str
    license_name: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+$")
    license_link: str | None = None
    tags: tuple[str, ...] = ()
    extra_gated_heading: str | None = None
    extra_gated_prompt: str | None = None
    extra_gated_description: str | None = None
    extra_gated_button_content: str | None = None
    extra_gated_fields: dict[str, Answer] | None = None

    @model_validator(mode="after")
    def _names_its_licence(self) -> _Front:
        if self.license not in LICENCES:
            raise ValueError(f"licence '{self.license}' is not one the Hub knows here")
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError("licence 'other' wants a name and a link")
        return self


class DatasetFront(_Front):
    pretty_name: NonEmptyText
    size_categories: tuple[str, ...] = Field(min_length=1)
    task_categories: tuple[Task, ...]
    annotations_creators: tuple[Creator, ...]
    language_creators: tuple[Creator, ...]
    source_datasets: tuple[Literal["original", "extended"], ...]
    configs: tuple[Config, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_one_default(self) -> DatasetFront:
        if sum(bool(config.default) for config in self.configs) != 1:
            raise ValueError("exactly one config is the default")
        return self


def _names_its_making(args: dict[str, Any]) -> dict[str, Any]:
    if missing := sorted({"signature", "unit", "n_scored", "n_total"} - set(args)):
        raise ValueError(f"a score without {', '.join(missing)}")
    return args


class _TypeAndName(_Strict):
    type: NonEmptyText
    name: NonEmptyText


class Metric(_TypeAndName):
    value: float
    args: Annotated[dict[str, Any], AfterValidator(_names_its_making)]


class References(_TypeAndName):
    split: str | None = None


class Result(_Strict):
    task: _TypeAndName
    dataset: References
    metrics: tuple[Metric, ...] = Field(min_length=1)


class ModelResults(_Strict):
    name: NonEmptyText
    results: tuple[Result, ...] = Field(min_length=1)


class ModelFront(_Front):
    base_model: str
    base_model_relation: Literal["adapter", "merge", "finetune"]
    library_name: Literal["peft", "transformers"]
    pipeline_tag: Literal["text-generation"]
    datasets: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    inference: bool = False
    model_index: tuple[ModelResults, ...] | None = Field(default=None, alias="model-index")

    @model_validator(mode="after")
    def _has_its_base_on_the_hub(self) -> ModelFront:
        if not REPO_ID.fullmatch(self.base_model):
            raise ValueError(f"base_model '{self.base_model}' is no repository of the Hub")
        return self


def check_front(model: type[DatasetFront | ModelFront], front: dict[str, Any]) -> dict[str, Any]:
    """The front matter, unchanged; a DataError names the first key that does not fit."""
    try:
        model.model_validate(front)
    except ValidationError as error:
        first = faults_of(error)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(first["msg"], where=f"README.md:{field}") from None
    return front
