"""One experiment from its settings to its report: what `cbtqa reproduce` and `cbtqa.reproduce` do.

done = run_experiment(ReproduceSettings(recipe="cbt-llm", smoke=True))
done.stages, done.report
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.records import Tabular
from cbtqa.reproduce.pipeline import (
    StageState,
    chosen_stages,
    make_plan,
    reproduce,
    stages_of,
    states,
)
from cbtqa.reproduce.report import ExperimentReport, write_report
from cbtqa.reproduce.stages import FORMATS, ReportSettings, ReproduceSettings, Watch


@dataclass(frozen=True)
class Reproduced(Tabular):
    """An experiment as it stands."""

    folder: Path
    recipe: str
    smoke: bool
    dry_run: bool
    card: str
    """That the hours of a dry run are counted for."""
    stages: tuple[StageState, ...]
    """Those that were chosen; all in a dry run, each with what it would still take."""
    report: ExperimentReport | None = None
    """None in a dry run, and where the report was not among the stages chosen."""

    @property
    def path(self) -> Path:
        """The folder, as `cbtqa.report` takes it."""
        return self.folder

    def to_dict(self) -> dict[str, Any]:
        """All but the report."""
        place = {"folder": str(self.folder), "recipe": self.recipe, "smoke": self.smoke}
        stages = [one.model_dump(mode="json") for one in self.stages]
        return {**place, "dry_run": self.dry_run, "card": self.card, "stages": stages}

    def to_rows(self) -> list[dict[str, Any]]:
        """The stages; in a dry run each with what it would still take."""
        rows = [one.model_dump(mode="json", exclude={"cost"}) for one in self.stages]
        if not self.dry_run:
            return rows
        costs = [one.cost.model_dump(mode="json") for one in self.stages]
        return [row | cost for row, cost in zip(rows, costs, strict=True)]


def run_experiment(
    settings: ReproduceSettings,
    only: Sequence[str] = (),
    start: str | None = None,
    *,
    dry_run: bool = False,
    watch: Watch | None = None,
    on_state: Callable[[StageState, int, int], None] = lambda state, n, n_all: None,
) -> Reproduced:
    """Runs the stages that are not done, then writes the report.

    Args:
        only: stages by kind or name; empty for all.
        start: the stage to begin at.
        on_state: called before each stage, with its place among all.

    Raises:
        UsageError: no such stage, or the folder holds something else.
        IncompleteRunError: a stage before the chosen ones is not done.
        CbtqaError: as the verbs themselves; the same call continues.
    """
    plan = make_plan(settings)
    stages = stages_of(plan)
    chosen = chosen_stages(stages, only, start)
    report = None
    if not dry_run:
        reproduce(plan, stages, chosen, watch or Watch(), on_state)
        if not only or "report" in only:
            report = write_report(ReportSettings(runs=(plan.root,), format_=FORMATS))
    names = {one.name for one in (stages if dry_run else chosen)}
    found = states(plan, stages, with_cost=dry_run)
    return Reproduced(
        folder=plan.root,
        recipe=plan.recipe.id,
        smoke=settings.smoke,
        dry_run=dry_run,
        card=plan.card,
        stages=tuple(one for one in found if one.stage in names),
        report=report,
    )
