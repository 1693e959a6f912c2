"""What can be set for `cbtqa simulate run` beside the study file, with each flag's help text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.llm.limits import Limits
from cbtqa.settings import Settings
from cbtqa.simulation.run import RunLimits
from cbtqa.simulation.study import StudySettings, load_study

_STUDY: JsonDict = {"panel": "Study"}
_ENGINE: JsonDict = {"panel": "Engine"}


class EngineSettings(Settings):
    """How fast and how much; nothing here changes a word."""

    in_flight: int = Field(
        64,
        ge=1,
        le=16384,
        description="Sessions played at a time; also the most requests at a time for one model.",
        json_schema_extra=_ENGINE,
    )
    rpm: int | None = Field(
        None, ge=1, description="Requests a minute to one model.", json_schema_extra=_ENGINE
    )
    tpm: int | None = Field(
        None, ge=1, description="Tokens a minute to one model.", json_schema_extra=_ENGINE
    )
    timeout_s: float = Field(
        180.0, gt=0, description="Seconds one request may take.", json_schema_extra=_ENGINE
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="Stop before this much is spent over all models, in the prices' currency.",
        json_schema_extra=_ENGINE,
    )
    budget_tokens: int | None = Field(
        None, gt=0, description="Stop after this many tokens.", json_schema_extra=_ENGINE
    )
    acknowledge_disclosure: bool = Field(
        False,
        description="I may pass the sessions on to the operators of the non-local endpoints that "
        "the study names; recorded in the manifest.",
        json_schema_extra=_ENGINE,
    )

    def limits(self) -> RunLimits:
        """The same as the run takes it."""
        engine = Limits(
            in_flight=self.in_flight, rpm=self.rpm, tpm=self.tpm, timeout_s=self.timeout_s
        )
        return RunLimits(engine, self.budget, self.budget_tokens)


class RunSettings(EngineSettings):
    """Flags of `cbtqa simulate run`."""

    study: Path | None = Field(
        None,
        description="YAML file of the study, such as recipes/tahir-act.yaml. Default: a small "
        "study between built-in players (rules, no model).",
    )
    out: Path = Field(Path("cbtqa-study"), description="Folder of the study.")
    seed: int | None = Field(
        None, description="Seed in place of the file's.", json_schema_extra=_STUDY
    )
    replicates: int | None = Field(
        None, ge=1, description="Repeats in place of the file's.", json_schema_extra=_STUDY
    )
    patients: int | None = Field(
        None, ge=1, description="Only the first N patients.", json_schema_extra=_STUDY
    )
    arm: tuple[str, ...] = Field(
        (), description="Only this arm. May be repeated.", json_schema_extra=_STUDY
    )

    def declared(self) -> StudySettings:
        """The study file with what the flags replace.

        Raises:
            ConfigError: the file is wrong, or it has no such arm.
            DataError: no such file.
        """
        return self._replaced(load_study(self.study))

    def _replaced(self, study: StudySettings) -> StudySettings:
        changes: dict[str, object] = {}
        if self.seed is not None:
            changes["seed"] = self.seed
        if self.replicates is not None:
            changes["replicates"] = self.replicates
        if self.patients is not None:
            changes["patients"] = study.patients.model_copy(update={"n": self.patients})
        if self.arm:
            changes["arms"] = tuple(study.arm(name) for name in self.arm)
        return study.model_copy(update=changes)


class CorpusSettings(RunSettings):
    """Flags of `cbtqa simulate corpus`."""

    study: Path | None = Field(
        None,
        description="YAML file of the corpus, such as recipes/tahir-cbt-corpus.yaml. Default: a "
        "small one by the built-in players (rules, no model).",
    )
    approach: Literal["cbt", "act"] = Field(
        "cbt",
        description="Which built-in corpus: cbt writes courses of twenty sessions in four calls "
        "each, act plays single sessions turn by turn under a supervisor.",
    )
    out: Path = Field(Path("cbtqa-corpus"), description="Folder of the corpus.")

    def declared(self) -> StudySettings:
        """The corpus file with what the flags replace; raises as `RunSettings.declared`."""
        return self._replaced(load_study(self.study, built_in=f"demo-corpus-{self.approach}"))
