"""The stages of a recipe for sessions: a corpus, tuned therapists, a study between them.

    corpus -> export, finetune for each tuned model -> play -> judge -> analyse

Tuned models play under their names at a server of your own, as the study file says; the built-in
players of a smoke run need none.
"""

from __future__ import annotations

from collections.abc import Iterator

from cbtqa.llm.second_opinion import opinions_of
from cbtqa.manifest import MANIFEST_NAME
from cbtqa.reproduce.recipe import TunedModel
from cbtqa.reproduce.stages import (
    Cost,
    Plan,
    Stage,
    Watch,
    convert_stage,
    deciding,
    tuning_stage,
)
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.export import ExportSettings
from cbtqa.simulation.judging.run import JUDGED, SessionJudgeSettings
from cbtqa.simulation.playing.run import CorpusSettings, RunSettings

STUDY = "study"


def session_stages(plan: Plan) -> list[Stage]:
    """The stages in order; the report is not among them."""
    names = list(plan.recipe.backbones)
    backbones = dict.fromkeys(plan.recipe.backbone_of(name) for name in names)
    return [
        _corpus_stage(plan),
        *(_export_stage(plan, name) for name in names),
        *(convert_stage(plan, backbone) for backbone in backbones),
        *(_finetune_stage(plan, name) for name in names),
        *_study_stages(plan),
    ]


def _played(plan: Plan, settings: RunSettings, watch: Watch) -> None:
    from cbtqa.simulation.playing.run import run_study

    run_study(
        settings.declared(),
        settings.out,
        limits=settings.run_limits,
        is_acknowledged=settings.acknowledge_disclosure,
        opinions=opinions_of(settings, settings.out),
        on_progress=watch.on_progress,
    )


def _playing_cost(settings: RunSettings) -> Cost:
    from cbtqa.simulation.playing.estimate import estimate_study

    found = estimate_study(settings.declared(), settings.out, settings.run_limits.engine)
    return Cost(n_requests=found.n_requests, money=found.cost, currency=found.currency)


def _corpus_stage(plan: Plan) -> Stage:
    folder = plan.root / "corpus"
    resolved = plan.resolved(CorpusSettings, "corpus", out=folder)
    return Stage(
        name="corpus",
        marker=folder / MANIFEST_NAME,
        work=lambda watch: _played(plan, resolved.values, watch),
        settings=deciding(resolved),
        estimate=lambda: _playing_cost(resolved.values),
    )


def _tuned(plan: Plan, name: str) -> TunedModel:
    return TunedModel.model_validate(plan.recipe.backbones[name].value)


def _export_stage(plan: Plan, name: str) -> Stage:
    """The rows of one tuned model, in the form in which it will play."""
    model, folder = _tuned(plan, name), plan.root / "rows" / name
    own = {} if plan.settings.smoke else {"arm": model.arm, "reasoning": model.reasoning}
    place = {"sessions": plan.root / "corpus", "out": folder}
    resolved = plan.resolved(ExportSettings, "export", **own, **place)

    def work(watch: Watch) -> None:
        from cbtqa.simulation.export import export_sessions

        export_sessions(resolved, on_progress=watch.on_progress)

    def estimate() -> Cost:
        from cbtqa.simulation.export import estimate_export

        if not (plan.root / "corpus" / MANIFEST_NAME).exists():
            return Cost(n_requests=None, money=None, note="known once the corpus is there")
        found = estimate_export(resolved.values)
        return Cost(n_requests=found.n_requests, money=found.cost, currency=found.currency)

    return Stage(
        name=f"export:{name}",
        marker=folder / MANIFEST_NAME,
        work=work,
        settings=deciding(resolved),
        needs=("corpus",),
        estimate=estimate,
    )


def _finetune_stage(plan: Plan, name: str) -> Stage:
    model = _tuned(plan, name)
    rows = plan.root / "rows" / name / model.rows
    own = {"data": rows / "train.jsonl", "validation_data": rows / "validation.jsonl"}
    preset = {"preset": model.preset} if model.preset else {}
    return tuning_stage(plan, name, (f"export:{name}",), **own, **preset)


def _study_stages(plan: Plan) -> Iterator[Stage]:
    folder, judged = plan.root / STUDY, plan.root / STUDY / JUDGED
    played = plan.resolved(RunSettings, "play", out=folder)
    yield Stage(
        name="play",
        marker=folder / MANIFEST_NAME,
        work=lambda watch: _played(plan, played.values, watch),
        settings=deciding(played),
        needs=tuple(f"finetune:{name}" for name in plan.recipe.backbones),
        estimate=lambda: _playing_cost(played.values),
    )
    rated = plan.resolved(SessionJudgeSettings, "judge", sessions=folder, out=judged)

    def judge(watch: Watch) -> None:
        from cbtqa.files import write_json
        from cbtqa.simulation.judging.run import judge_sessions

        forms = judge_sessions(rated, watch.on_progress, watch.on_stage)
        write_json(plan.root / "judged.json", {"forms": [one.model_dump() for one in forms]})

    def judging_cost() -> Cost:
        from cbtqa.simulation.judging.run import estimate_judging

        if not (folder / MANIFEST_NAME).exists():
            return Cost(n_requests=None, money=None, note="known once the sessions are there")
        found = estimate_judging(rated)
        return Cost(n_requests=found.n_requests, money=found.cost, currency=found.currency)

    yield Stage(
        name="judge",
        marker=plan.root / "judged.json",
        work=judge,
        settings=deciding(rated),
        needs=("play",),
        estimate=judging_cost,
    )
    place = {"source": folder, "out": plan.root / "analysis"}
    analysed = plan.resolved(AnalysisSettings, "analyse", **place)

    def analyse(watch: Watch) -> None:
        from cbtqa.simulation.analysis.run import run_analysis

        watch.on_stage("analysing the study")
        run_analysis(analysed)

    yield Stage(
        name="analyse",
        marker=plan.root / "analysis" / MANIFEST_NAME,
        work=analyse,
        settings=deciding(analysed),
        needs=("judge",),
    )
