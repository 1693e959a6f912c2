"""Recipes: what each stage of an experiment is set to, and where each value comes from.

    recipe = read_recipe("cbt-llm")            # shipped, or the path of a YAML file
    recipe.settings("finetune")                # {"preset": "paper"}

A value is plain, or says where it is from:

    rate:
      n: {value: 100, mark: paper, why: "Table 5: 100 sampled examples"}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from cbtqa.dataset.settings import BuildSettings
from cbtqa.errors import ConfigError, DataError, UsageError, faults_of
from cbtqa.files import read_text
from cbtqa.hub.settings import DatasetSettings
from cbtqa.judging.run import JudgeSettings
from cbtqa.metrics.comparison import CompareSettings
from cbtqa.metrics.scoring import ScoreSettings
from cbtqa.papers import papers
from cbtqa.plain_values import parse_yaml
from cbtqa.ratings.design import NewStudySettings
from cbtqa.records import NonEmptyText, Record
from cbtqa.report.page import Phrase
from cbtqa.settings import BY_FLAG_ONLY, Settings
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.export import ExportSettings
from cbtqa.simulation.judging.run import SessionJudgeSettings
from cbtqa.simulation.playing.run import CorpusSettings, RunSettings
from cbtqa.tuning.answering.settings import GenerateSettings
from cbtqa.tuning.backbones import find_backbone
from cbtqa.tuning.settings import FinetuneSettings

Kind = Literal["answers", "sessions"]
"""answers: questions, tuned models, scores; sessions: a corpus, tuned therapists, a study."""
Mark = Literal["paper", "card", "notebook", "assumed"]
"""paper: printed, or in public summaries of it; card: the released model's card; notebook: the
authors' published code; assumed: the sources are silent, or the choice is ours."""
MARKS: tuple[str, ...] = get_args(Mark)
STAGES: dict[Kind, dict[str, type[Settings] | None]] = {
    "answers": {
        "build": BuildSettings,
        "convert": None,
        "finetune": FinetuneSettings,
        "generate": GenerateSettings,
        "score": ScoreSettings,
        "compare": CompareSettings,
        "judge": JudgeSettings,
        "rate": NewStudySettings,
        "publish": DatasetSettings,
        "report": None,
    },
    "sessions": {
        "corpus": CorpusSettings,
        "export": ExportSettings,
        "convert": None,
        "finetune": FinetuneSettings,
        "play": RunSettings,
        "judge": SessionJudgeSettings,
        "analyse": AnalysisSettings,
        "report": None,
    },
}
"""Stages in their order, each with the settings of its verb."""
OWN = {
    "build": {"input", "out"},
    "corpus": {"out"},
    "export": {"sessions", "out"},
    "finetune": {"data", "validation_data", "backbone", "out"},
    "generate": {"data", "adapter", "base", "out", "system"},
    "score": {"predictions", "ref", "out"},
    "compare": {"predictions", "ref", "out"},
    "judge": {"predictions", "questions", "sessions", "out"},
    "rate": {"predictions", "questions", "out", "key"},
    "publish": {"run", "ratings"},
    "play": {"out"},
    "analyse": {"source", "judged", "out"},
}
"""Settings that the pipeline itself fills in."""


class Choice(Record):
    """One value and where it comes from."""

    value: Any
    mark: Mark | None = None
    """None: a recipe of one's own need not say."""
    why: str = ""


class TunedModel(Record):
    """One tuned model of a recipe for sessions."""

    backbone: NonEmptyText
    arm: str | None = None
    """Arm of the study that it plays; its rows take that arm's prompts."""
    preset: str | None = None
    rows: Literal["sft", "orpo"] = "sft"
    reasoning: Literal["as_played", "cot", "plain"] = "as_played"


class Recipe(Record):
    """An experiment."""

    id: NonEmptyText
    title: Phrase
    kind: Kind = "answers"
    paper: str | None = None
    """The paper whose printed figures stand beside."""
    backbones: dict[str, Choice]
    """Backbone by name, the value null; of a recipe for sessions the tuned model by its name at the
    server, the value a mapping of `TunedModel`."""
    stages: dict[str, dict[str, Choice]]
    deviations: tuple[str, ...] = ()
    """What differs from the paper, as far as it is known."""

    def settings(self, stage: str) -> dict[str, Any]:
        """Setting to value, of one stage."""
        return {name: choice.value for name, choice in self.stages.get(stage, {}).items()}

    def backbone_of(self, name: str) -> str:
        """The backbone of a tuned model."""
        value = self.backbones[name].value
        return name if value is None else TunedModel.model_validate(value).backbone

    def choices(self) -> Iterator[tuple[str, str, Choice]]:
        """Stage, setting and choice of every value."""
        yield from (("backbones", name, choice) for name, choice in self.backbones.items())
        for stage, values in self.stages.items():
            yield from ((stage, name, choice) for name, choice in values.items())

    def with_values(self, more: Mapping[tuple[str, str], Any], why: str) -> Recipe:
        """The recipe with values over its own, by stage and setting."""
        stages = {name: dict(values) for name, values in self.stages.items()}
        for (stage, setting), value in more.items():
            stages.setdefault(stage, {})[setting] = Choice(value=value, why=why)
        return self.model_copy(update={"stages": stages})


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    names = (entry.name for entry in (files("cbtqa.reproduce") / "recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_recipe(given: str, changes: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or that of a YAML file.

    Args:
        changes: `STAGE.SETTING=VALUE`, the value as in YAML, over the recipe's own.

    Raises:
        UsageError: no such recipe, or a change that is not of that form.
        ConfigError: every unknown key, with the near name, and every bad value at once.
    """
    names = shipped_recipes()
    if given.endswith((".yaml", ".yml")):
        text, where = read_text(Path(given)), given
    elif given in names:
        where = f"recipe {given}"
        text = (files("cbtqa.reproduce") / "recipes" / f"{given}.yaml").read_text("utf-8")
    else:
        hint = f"shipped: {', '.join(names)}; or the path of a YAML file"
        close = difflib.get_close_matches(given, names, n=1)
        raise UsageError(
            f"no recipe '{given}'", hint=f"did you mean {close[0]}? {hint}" if close else hint
        )
    try:
        tree = parse_yaml(text, where)
    except DataError as error:
        raise ConfigError(str(error)) from None
    recipe = _checked(tree, where)
    return _changed(recipe, changes)


def _checked(tree: Any, where: str) -> Recipe:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a recipe as `key: value` lines")
    kind = tree.get("kind", "answers")
    if kind not in STAGES:
        raise ConfigError(f"{where}: kind: '{kind}', expected one of {', '.join(STAGES)}")
    stages = STAGES[kind]
    own = ("id", "title", "kind", "paper", "backbones", "deviations")
    problems = [_unknown(key, [*own, *stages]) for key in tree if key not in (*own, *stages)]
    named = tree.get("backbones")
    if not isinstance(named, dict) or not named:
        problems.append("backbones: expected a backbone by name and at least one")
        named = {}
    if (paper := tree.get("paper")) is not None and paper not in papers():
        problems.append(f"paper: {_unknown(str(paper), list(papers()))}")
    given = {"backbones": named} | {name: tree[name] for name in stages if tree.get(name)}
    choices: dict[str, dict[str, Choice]] = {}
    for stage, values in given.items():
        if not isinstance(values, dict):
            problems.append(f"{stage}: expected settings as `key: value` lines")
            continue
        found = choices[stage] = {}
        for name, row in values.items():
            problem = None if stage == "backbones" else setting_problem(kind, stage, name)
            try:
                found[name] = _choice(row)
                if stage == "backbones":
                    _check_backbone(kind, name, found[name].value)
            except (ValueError, UsageError) as error:
                problem = _first_fault(error)
            if problem:
                problems.append(f"{stage}.{name}: {problem}")
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    rest = {name: tree[name] for name in own if name in tree and name != "backbones"}
    try:
        return Recipe(backbones=choices.pop("backbones"), stages=choices, **rest)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults_of(error))
        raise ConfigError("\n".join(f"{where}: {line}" for line in told)) from None


def _check_backbone(kind: Kind, name: str, value: Any) -> None:
    """Raises what is wrong with a backbone or a tuned model."""
    if kind == "sessions":
        name = TunedModel.model_validate(value).backbone
    elif value is not None:
        raise ValueError(f"expected null, found {value!r}")
    find_backbone(name)


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = faults_of(error)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    hint = f"; {error.hint}" if isinstance(error, UsageError) and error.hint else ""
    return f"{error}{hint}"


def _choice(row: Any) -> Choice:
    """A value, with or without where it is from; raises ValueError."""
    if not isinstance(row, dict) or "value" not in row:
        return Choice(value=row)
    if unknown := row.keys() - {"value", "mark", "why"}:
        raise ValueError(f"expected value, mark and why, found {', '.join(sorted(unknown))}")
    if row.get("mark") not in (None, *MARKS):
        raise ValueError(_unknown(str(row["mark"]), MARKS, "mark"))
    return Choice(**row)


def setting_problem(kind: Kind, stage: str, name: str) -> str | None:
    """Why a setting cannot stand in a recipe; None when it can."""
    model = STAGES[kind][stage]
    if model is None:
        return "this stage has no settings"
    if name not in model.model_fields:
        return _unknown(name, list(model.model_fields), "setting")
    if name in OWN.get(stage, ()):
        return "is filled in by the pipeline itself"
    if BY_FLAG_ONLY in model.model_fields[name].metadata:
        return "is said on the command line of the very run, not in a recipe"
    return None


def _unknown(name: str, known: Sequence[str], what: str = "key") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    more = f", did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
    return f"unknown {what} '{name}'{more}"


def _changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    values: dict[tuple[str, str], Any] = {}
    problems = []
    for change in changes:
        place, equals, text = change.partition("=")
        stage, dot, name = place.strip().partition(".")
        if not equals or not dot:
            hint = "--set build.model=Qwen3-32B"
            raise UsageError(f"--set {change}: expected STAGE.SETTING=VALUE", hint=hint)
        if stage not in STAGES[recipe.kind]:
            problem: str | None = _unknown(stage, list(STAGES[recipe.kind]), "stage")
        else:
            problem = setting_problem(recipe.kind, stage, name)
        if problem:
            problems.append(f"--set {place}: {problem}")
        else:
            values[stage, name] = parse_yaml(text, f"--set {place}")
    if problems:
        raise ConfigError("\n".join(problems))
    return recipe.with_values(values, "--set")
