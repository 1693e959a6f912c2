"""The stages of an experiment: each one verb, its settings out of the recipe, its place on disk.

    plan = Plan(recipe, ReproduceSettings(out=Path("runs/cbt-llm")))
    for stage in answer_stages(plan): ...      # sessions: `session_stages.py`

What a verb writes stays its own: the folder with its manifest is the one the command would leave.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import field_validator

from cbtqa.dataset.settings import BuildSettings
from cbtqa.files import read_rows, sha256_of, write_json
from cbtqa.hub.settings import DatasetSettings, ModelSettings
from cbtqa.judging.run import JudgeSettings
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.runs import EndpointSettings
from cbtqa.manifest import MANIFEST_NAME, describe_settings, now
from cbtqa.metrics.comparison import COMPARISON_NAME, CompareSettings
from cbtqa.metrics.scoring import ScoreSettings
from cbtqa.psyqa import bundled_sample_path
from cbtqa.ratings.design import NewStudySettings
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import open_study
from cbtqa.records import Record
from cbtqa.report.page import Lang
from cbtqa.reproduce.recipe import Recipe
from cbtqa.settings import BY_FLAG_ONLY, Resolved, Settings, SettingsT, resolve
from cbtqa.tuning.answering.settings import GenerateSettings
from cbtqa.tuning.backbones import count_parameters, find_backbone
from cbtqa.tuning.libraries import require_training
from cbtqa.tuning.settings import FinetuneSettings, resolve_preset

if TYPE_CHECKING:
    from cbtqa.hub.publish import Prepared

WITHOUT_EFFECT = set(EndpointSettings.model_fields) - {"endpoint", "model", "extra", "max_attempts"}
"""Settings that change no result."""
T = TypeVar("T")


class ReproduceSettings(Settings):
    """The settings of `cbtqa reproduce`."""

    panel: ClassVar[str] = "Experiment"
    recipe: str
    """Recipe by name (cbt-llm, cbtqa-modern, tahir-cbt, tahir-act), or a YAML file of your own."""
    data: Path | None = None
    """PsyQA file. Default: the bundled sample of invented questions."""
    set_: tuple[str, ...] = ()
    """STAGE.SETTING=VALUE over the recipe's, such as build.model=Qwen3-32B. May be repeated."""
    out: Path | None = None
    """Folder of the experiment. Default: cbtqa- and the recipe's name."""
    smoke: bool = False
    """Try every stage on a CPU in minutes: tiny random backbones in the real architectures, the
    built-in teacher, few steps. Its figures mean nothing."""
    acknowledge_disclosure: Annotated[bool, BY_FLAG_ONLY] = False
    """I may pass this text on to the operators of the recipe's non-local endpoints. PsyQA's
    agreement forbids it without permission; recorded."""


FORMATS = ("html", "md", "json", "latex")


class ReportSettings(Settings):
    """The settings of `cbtqa report`."""

    panel: ClassVar[str] = "Report"
    runs: tuple[Path, ...]
    """Folders of experiments."""
    out: Path | None = None
    """Folder of the report. Default: the first experiment's."""
    format_: tuple[str, ...] = ("html",)
    """html, md, json or latex. May be repeated."""
    lang: Lang = "en"
    """Main language: en or zh."""

    @field_validator("format_")
    @classmethod
    def _are_known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(values) - set(FORMATS):
            raise ValueError(f"expected {', '.join(FORMATS)}, not {', '.join(sorted(unknown))}")
        return values


class Cost(Record):
    """What a stage would still take."""

    n_requests: int | None = 0
    """None: not known before the stages before it are done."""
    money: float | None = 0.0
    currency: str = ""
    card_hours: float | None = 0.0
    """On the card that `Plan.card` names."""
    note: str = ""


NOTHING = Cost()


@dataclass(frozen=True)
class Watch:
    """Who is told how far a stage is."""

    on_progress: OnProgress | None = None
    on_stage: Callable[[str], None] = lambda words: None


@dataclass(frozen=True)
class Stage:
    """One stage, of one backbone where it is done for each."""

    name: str
    """`finetune:qwen`; without a backbone the kind alone."""
    marker: Path
    """The file whose bytes tell which result is there; written last."""
    work: Callable[[Watch], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that decides its result, beside what it is made from."""
    needs: tuple[str, ...] = ()
    estimate: Callable[[], Cost] = lambda: NOTHING
    skipped: str = ""
    """Why it is left out; empty when it is not."""

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Plan:
    """A recipe, the settings of this run, and where everything lies."""

    recipe: Recipe
    settings: ReproduceSettings
    card: ClassVar[str] = "a100-80"

    @property
    def root(self) -> Path:
        return self.settings.out or Path(f"cbtqa-{self.recipe.id}")

    @property
    def data(self) -> Path:
        return self.root / "dataset"

    def tuned(self, backbone: str) -> Path:
        return self.root / "tuned" / backbone

    def answers(self, backbone: str) -> Path:
        return self.root / "answers" / backbone

    def tiny(self, backbone: str) -> Path:
        """The random model that takes a backbone's place in a smoke run."""
        return self.root / "backbones" / backbone

    def backbone(self, name: str) -> str:
        """What `cbtqa finetune` is given."""
        backbone = self.recipe.backbone_of(name)
        return str(self.tiny(backbone)) if self.settings.smoke else backbone

    @property
    def answer_files(self) -> tuple[Path, ...]:
        return tuple(self.answers(name) / "answers.jsonl" for name in self.recipe.backbones)

    @property
    def questions(self) -> Path:
        return self.settings.data or bundled_sample_path()

    def resolved(self, model: type[SettingsT], stage: str, **own: Any) -> Resolved[SettingsT]:
        """The settings of a verb: the recipe's, and those that the pipeline fills in."""
        given = {**self.recipe.settings(stage), **own}
        if self.settings.acknowledge_disclosure and "acknowledge_disclosure" in model.model_fields:
            given["acknowledge_disclosure"] = True
        found = resolve(model, flags=given)
        origins = dict(found.origins)
        for name, choice in self.recipe.stages.get(stage, {}).items():
            words = [f"recipe {self.recipe.id}", choice.mark, choice.why]
            if name in origins and choice.value is not None:
                origins[name] = ": ".join(filter(None, words[:1])) + (
                    f": {', '.join(filter(None, words[1:]))}" if any(words[1:]) else ""
                )
        return Resolved(found.values, origins)


def deciding(resolved: Resolved[Any], *own: str) -> dict[str, Any]:
    """Settings that decide a result: paths by their names, limits and prices left out."""
    left_out = WITHOUT_EFFECT if isinstance(resolved.values, EndpointSettings) else set()
    return {
        name: entry.value
        for name, entry in describe_settings(resolved).items()
        if name not in left_out and name not in own
    }


def written_whole(folder: Path, write: Callable[[Path], T]) -> T:
    """What `write` makes, first in a folder beside `folder` and then in its place.

    For results that cost seconds: what was there is replaced, what was left half is removed.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    made = write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return made


# --- questions, tuned models, scores -------------------------------------------------------------


def answer_stages(plan: Plan) -> list[Stage]:
    """The stages of a recipe for answers, in order; the report is not among them."""
    names = list(plan.recipe.backbones)
    stages = [build_stage(plan)]
    for name in names:
        stages += [convert_stage(plan, name), _finetune_stage(plan, name)]
    stages += [_generate_stage(plan, name) for name in names]
    stages += [_score_stage(plan), _compare_stage(plan), _judge_stage(plan)]
    stages += [_rate_stage(plan), _publish_stage(plan)]
    order = ["build", "convert", "finetune"]
    return sorted(stages, key=lambda one: order.index(one.kind) if one.kind in order else 3)


def build_stage(plan: Plan) -> Stage:
    """Questions to a checked, labelled, split dataset."""
    resolved = plan.resolved(BuildSettings, "build", input=plan.settings.data, out=plan.data)

    def work(watch: Watch) -> None:
        from cbtqa.dataset.run import build_dataset

        build_dataset(resolved, on_progress=watch.on_progress, on_stage=watch.on_stage)

    def estimate() -> Cost:
        from cbtqa.dataset.run import estimate_build

        found = estimate_build(resolved)
        return Cost(n_requests=found.n_requests, money=found.cost, currency=found.currency)

    return Stage(
        name="build",
        marker=plan.data / MANIFEST_NAME,
        work=work,
        settings={**deciding(resolved), "input": sha256_of(plan.questions)},
        estimate=estimate,
    )


def convert_stage(plan: Plan, name: str) -> Stage:
    """A backbone that transformers cannot read as it was published, rewritten once."""
    if plan.settings.smoke:
        return _tiny_stage(plan, name)
    is_needed = find_backbone(name).needs_conversion
    marker = plan.root / "converted" / f"{name}.json"

    def work(watch: Watch) -> None:
        from cbtqa.tuning.loading import choose_backbone

        found = choose_backbone(name, on_stage=watch.on_stage)
        write_json(marker, {"backbone": name, "copy": found.display_name})

    return Stage(
        name=f"convert:{name}",
        marker=marker,
        work=work,
        settings={"backbone": name},
        estimate=lambda: Cost(note="a download and a conversion, unless its copy is there"),
        skipped="" if is_needed else "transformers reads it as it is",
    )


def _tiny_stage(plan: Plan, name: str) -> Stage:
    """A tiny random checkpoint as the backbone was published, converted where that one is."""
    backbone, folder = find_backbone(name), plan.tiny(name)

    def work(watch: Watch) -> None:
        from cbtqa.tuning.weights.convert import convert
        from cbtqa.tuning.weights.tiny import write_tiny

        watch.on_stage(f"writing a tiny random {name}")
        texts = [str(row.get("description")) for _, row in read_rows(bundled_sample_path())]
        published = folder.with_name(f"{name}-as-published") if backbone.conversion else folder
        written_whole(published, lambda to: write_tiny(backbone, to, texts))
        if backbone.conversion:
            shutil.rmtree(folder, ignore_errors=True)
            found = {"path": published, "source_id": backbone.id, "aliases": ()}
            convert(backbone.model_copy(update=found), folder)

    return Stage(f"convert:{name}", folder / "config.json", work, settings={"tiny": name})


def _finetune_stage(plan: Plan, name: str) -> Stage:
    return tuning_stage(plan, name, ("build",), data=plan.data)


def tuning_stage(plan: Plan, name: str, needs: Sequence[str], **own: Any) -> Stage:
    """One backbone tuned."""
    backbone = plan.recipe.backbone_of(name)
    place = {"backbone": plan.backbone(name), "out": plan.tuned(name)}
    resolved = plan.resolved(FinetuneSettings, "finetune", **own, **place)
    if (
        plan.settings.smoke
        and not find_backbone(backbone).needs_conversion
        and resolve_preset(resolved).values.chat_format is None
    ):
        # a tiny folder is recognised as none of the listed models, whose format it would have
        own["chat_format"] = (find_backbone(backbone).template or "").removesuffix(".jinja")
        resolved = plan.resolved(FinetuneSettings, "finetune", **own, **place)

    def work(watch: Watch) -> None:
        from cbtqa.tuning.training.finetune import finetune

        finetune(resolved, on_stage=watch.on_stage)

    is_converted = plan.settings.smoke or find_backbone(backbone).needs_conversion
    return Stage(
        name=f"finetune:{name}",
        marker=plan.tuned(name) / MANIFEST_NAME,
        work=work,
        settings=deciding(resolved, "backbone") | {"backbone": backbone},
        needs=(*needs, *([f"convert:{backbone}"] if is_converted else [])),
        estimate=lambda: _training_cost(plan, name, resolved),
    )


TOKENS_OF_EXAMPLE = 650
"""Of a question of some 200 characters and an answer of some 500; assumed, before there are any."""


def _training_cost(plan: Plan, name: str, resolved: Resolved[FinetuneSettings]) -> Cost:
    """Card hours of one run: of the built dataset, or by the number of questions."""
    if plan.settings.smoke:
        return Cost(note="seconds, on this machine")
    require_training()
    from cbtqa.tuning.budget.estimate import expected_seconds, load_cards

    if (plan.data / MANIFEST_NAME).exists():
        from cbtqa.tuning.training.dry_run import dry_run

        (card,) = dry_run(resolved, cards=[load_cards()[plan.card]]).cards
        note = "" if card.fits else "does not fit on one"
        return Cost(card_hours=card.seconds and card.seconds / 3600, note=note)
    shape = find_backbone(plan.recipe.backbone_of(name)).shape
    if shape is None:
        return Cost(card_hours=None, note="the backbone's size is not known")
    settings = resolve_preset(resolved).values
    n_examples = sum(1 for _ in read_rows(plan.questions))
    n_tokens = n_examples * TOKENS_OF_EXAMPLE * settings.epochs
    # forward 2, backward 2 operations a weight and token: the frozen weights get no gradient
    flops = 4.0 * count_parameters(shape)
    hours = expected_seconds(n_tokens, flops, load_cards()[plan.card]) / 3600
    note = f"rough: {TOKENS_OF_EXAMPLE} tokens an example, before there are any"
    return Cost(card_hours=hours, note=note)


def _generate_stage(plan: Plan, name: str) -> Stage:
    resolved = plan.resolved(
        GenerateSettings,
        "generate",
        data=plan.data,
        adapter=plan.tuned(name),
        base=plan.backbone(name) if plan.settings.smoke else None,
        system=name,
        out=plan.answers(name),
    )

    def work(watch: Watch) -> None:
        from cbtqa.tuning.answering.generate import generate

        generate(resolved, on_progress=watch.on_progress, on_stage=watch.on_stage)

    return Stage(
        name=f"generate:{name}",
        marker=plan.answers(name) / MANIFEST_NAME,
        work=work,
        settings=deciding(resolved, "base"),
        needs=("build", f"finetune:{name}"),
        estimate=lambda: Cost(card_hours=None, note="answering on a card: not estimated"),
    )


def _all(plan: Plan, kind: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{name}" for name in plan.recipe.backbones)


def _score_stage(plan: Plan) -> Stage:
    folder = plan.root / "scores"
    given = {"predictions": plan.answer_files, "ref": plan.data}
    resolved = plan.resolved(ScoreSettings, "score", **given, out=folder)

    def work(watch: Watch) -> None:
        from cbtqa.metrics import score_folder, scoring

        started = now()
        watch.on_stage("scoring")
        scored = scoring.score(resolved.values)
        written_whole(folder, lambda to: score_folder.write_folder(to, scored, resolved, started))

    marker = folder / MANIFEST_NAME
    needs = ("build", *_all(plan, "generate"))
    return Stage("score", marker, work, settings=deciding(resolved), needs=needs)


def _compare_stage(plan: Plan) -> Stage:
    folder = plan.root / "compared"
    given: dict[str, Any] = {"predictions": plan.answer_files, "ref": plan.data}
    # a cut answer is rejected: systems seldom answer the very same questions
    given["common"] = plan.recipe.settings("compare").get("common", True)
    resolved = plan.resolved(CompareSettings, "compare", **given, out=folder)

    def work(watch: Watch) -> None:
        from cbtqa.metrics.comparison import compare, write_comparison

        watch.on_stage("comparing systems")
        found = compare(resolved.values)
        lang = resolved.values.lang
        written_whole(folder, lambda to: write_comparison(to, found, lang))

    return Stage(
        name="compare",
        marker=folder / COMPARISON_NAME,
        work=work,
        settings=deciding(resolved),
        needs=("build", *_all(plan, "generate")),
        skipped="one system: nothing to compare" if len(plan.recipe.backbones) < 2 else "",
    )


def _judge_stage(plan: Plan) -> Stage:
    folder = plan.root / "judged"
    given = {"predictions": plan.answer_files, "questions": plan.data}
    resolved = plan.resolved(JudgeSettings, "judge", **given, out=folder)

    def work(watch: Watch) -> None:
        from cbtqa.judging.run import judge

        judge(resolved, watch.on_progress)

    def estimate() -> Cost:
        from cbtqa.judging.run import estimate_judge

        if not all(path.exists() for path in plan.answer_files):
            return Cost(n_requests=None, money=None, note="known once the answers are there")
        found = estimate_judge(resolved)
        return Cost(n_requests=found.n_requests, money=found.cost, currency=found.currency)

    why = "no judge named: --set judge.endpoint=vllm --set judge.model=NAME, or judge.rules=true"
    return Stage(
        name="judge",
        marker=folder / MANIFEST_NAME,
        work=work,
        settings=deciding(resolved),
        needs=("build", *_all(plan, "generate")),
        estimate=estimate,
        skipped="" if resolved.values.endpoint or resolved.values.rules else why,
    )


def _rate_stage(plan: Plan) -> Stage:
    """The blinded sheets; people fill them, and the report takes what they have filled."""
    folder = plan.root / "rate"
    named = zip(plan.recipe.backbones, plan.answer_files, strict=True)
    given = {"predictions": tuple(f"{name}={path}" for name, path in named)}
    given_by_recipe = plan.resolved(NewStudySettings, "rate", questions=plan.data, **given)

    def work(watch: Watch) -> None:
        from cbtqa.errors import ConfigError
        from cbtqa.ratings.design import create_study

        if (folder / "study").is_dir() and n_ratings(folder / "study"):
            raise ConfigError(
                f"{folder / 'study'} holds ratings of other answers or settings",
                hint="keep them under another name, or take another --out",
            )
        watch.on_stage("drawing the answers to rate")

        def write(to: Path) -> None:
            place = {"out": to / "study", "key": to / "study.key.json"}
            create_study(given_by_recipe.values.model_copy(update=place), with_sheets=True)

        written_whole(folder, write)

    return Stage(
        name="rate",
        marker=folder / "study.key.json",
        work=work,
        settings=deciding(given_by_recipe, "predictions"),
        needs=("build", *_all(plan, "generate")),
    )


def n_ratings(study: Path) -> int:
    """Ratings that people have given so far."""
    folder = open_study(study)
    with Store(folder.store_path, folder.study.id) as store:
        return sum(1 for _ in store.events())


def _publish_stage(plan: Plan) -> Stage:
    """What publishing would send, scanned; nothing is sent."""
    folder = plan.root / "publish"
    resolved = plan.resolved(DatasetSettings, "publish", run=plan.data)
    source = {"source": resolved.values.source or plan.settings.data}

    def work(watch: Watch) -> None:
        from cbtqa.hub.plan import PublishRefusedError
        from cbtqa.hub.publish import prepare_dataset, prepare_model

        watch.on_stage("scanning what would be published")
        prepared: dict[str, Prepared] = {}
        found: dict[str, Any] = {}
        wanted: dict[str, Callable[[], Prepared]] = {
            "dataset": partial(
                prepare_dataset, resolved.values.model_copy(update=source), asks=False
            )
        }
        for name in plan.recipe.backbones:
            settings = ModelSettings(
                run=plan.tuned(name), scores=(plan.root / "scores",), system=name
            )
            wanted[name] = partial(prepare_model, settings)
        for name, prepare in wanted.items():
            try:
                prepared[name] = prepare()
            except PublishRefusedError as refused:
                found[name] = {"refused": str(refused)}

        def write(to: Path) -> None:
            for name, one in prepared.items():
                one.write_preview(to / f"{name}.html")
                findings = [{"where": what.where, "what": what.what} for what in one.findings]
                found[name] = {"n_files": len(one.plan.files), "findings": findings}
            write_json(to / "publish.json", found)

        written_whole(folder, write)

    return Stage(
        name="publish",
        marker=folder / "publish.json",
        work=work,
        settings=deciding(resolved),
        needs=("build", *_all(plan, "finetune"), "score"),
    )
