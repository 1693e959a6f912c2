"""`cbtqa score`: settings, the run, and its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from cbtqa.dataset_folder import DatasetFolder, has_splits, is_dataset_folder
from cbtqa.errors import UsageError
from cbtqa.metrics.base import Metric
from cbtqa.metrics.evaluation import (
    LEFT_OUT,
    IntervalKind,
    OnBlock,
    Resampling,
    SystemScores,
    anchors,
    evaluate,
    leave_one_out,
    scores_of,
)
from cbtqa.metrics.grouping import Grouping
from cbtqa.metrics.neural.metric import Absent, NeuralMetric
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.pairs import (
    Predictions,
    References,
    brings_references,
    joined_references,
    read_own_references,
    read_predictions,
    read_references,
)
from cbtqa.metrics.peers import PeerCheck, check_by_peers
from cbtqa.metrics.registry import AnyMetric, metrics_named
from cbtqa.metrics.rows import Columns
from cbtqa.metrics.structure import (
    StepsInOrder,
    measure,
    read_steps,
    train_step_model,
)
from cbtqa.metrics.text.texts import Item
from cbtqa.psyqa import bundled_sample_path
from cbtqa.records import MetricScore, Record, Tabular
from cbtqa.report.page import Lang
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    DEFAULT_SEED,
    FEW_ITEMS,
    FEWEST_FOR_BOOTSTRAP,
)
from cbtqa.text_faults import is_traditional


class ScoreSettings(NeuralSettings):
    """The settings of `cbtqa score`."""

    predictions: tuple[Path, ...] = ()
    """Files with predictions, or built datasets where --ref is one. Plain text has one a line."""
    ref: tuple[Path, ...] = ()
    """References: a built dataset, any file with answers, or questions with several human answers
    each, as PsyQA's file; repeated: several references to each question. Not needed where every
    file of predictions brings its own, as those of LLaMA-Factory and ms-swift do."""
    split: str = "test"
    """Splits of a built dataset, comma-separated, or all."""
    metrics: str = "default"
    """Metrics and presets, comma-separated: default, lexical, paper, all."""
    id_column: str | None = None
    """Id column of the predictions."""
    prediction_column: str | None = None
    """Column with the prediction."""
    ref_id_column: str | None = None
    """Id column of the references."""
    ref_column: str | None = None
    """Column with the reference."""
    cluster_column: str | None = None
    """Column of the references whose equal values make rows one question; without it: question
    ids and texts that occur several times. The id column makes each row its own."""
    encoding: str = "utf-8"
    """Encoding of text files that are not UTF-8."""
    bootstrap: int = Field(default=BOOTSTRAP_TRIALS, ge=0)
    """Resamples of --interval percentile; 0 for no interval of either kind."""
    interval: IntervalKind = "t"
    """95 % intervals: t, by the jackknife, right from three questions on; percentile, as
    sacrebleu's bootstrap, too narrow below 100."""
    seed: int = Field(default=DEFAULT_SEED, ge=0)
    """Seed of all resampling."""
    anchors: bool = True
    """Also score the references themselves and shuffled ones."""
    step_classifier: str = "shipped"
    """What finds CBT steps in text: shipped (fitted on invented answers of many styles), or a built
    dataset whose train split teaches a classifier of its own."""
    lang: Lang = "zh"
    """Main language of the page."""
    out: Path | None = None
    """Folder for scores.json, tables and a page."""

    @field_validator("ref", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value or ()

    @property
    def resampling(self) -> Resampling:
        """How intervals are made."""
        return Resampling(self.bootstrap, self.seed, self.interval)


class SystemCounts(Record):
    """What became of one system's rows."""

    system: str
    is_anchor: bool
    n_rows: int | None = None
    """None for the anchors, which have no file."""
    n_not_in_references: int = 0
    n_missing: int = 0
    """References that the file has no row for."""
    n_none: int = 0
    """Rows without an answer."""
    n_empty: int = 0
    """Answers of whitespace only; scored as they are."""
    n_identical: int = 0
    """Answers equal to their reference."""
    n_repeated: int = 0
    """Answers that the system also gave to another question."""
    n_cut: int = 0
    """Answers cut at the token limit or ending inside a sentence."""
    n_machine: int = 0
    """Answers with control tokens, another speaker's turn or reasoning; scored as they are."""


class ScoreReport(Record):
    """Everything `cbtqa score` found."""

    references: str
    n_references: int
    n_references_missing: int
    """Rows of the references without an answer."""
    references_sha256: str
    grouping: Grouping = Grouping()
    """What intervals and tests draw."""
    scores: tuple[MetricScore, ...]
    beside_people: tuple[MetricScore, ...] = ()
    """Where questions have several references: people and systems on the same footing, against all
    references but one, each left out in turn."""
    systems: tuple[SystemCounts, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know of how metrics were made ready, and what checked them."""
    checks: tuple[PeerCheck, ...] = ()
    """Scores recomputed by the programs that define them."""


@dataclass(frozen=True, eq=False)
class Scored(Tabular):
    """A report together with the data it was made from, for files and comparisons."""

    report: ScoreReport
    references: References
    predictions: Sequence[Predictions]
    evaluated: Sequence[SystemScores]
    metrics: Sequence[AnyMetric]

    def to_dict(self) -> dict[str, Any]:
        """The report."""
        return self.report.to_dict()


def score(
    settings: ScoreSettings,
    on_block: OnBlock = lambda n_done, n_total: None,
    *,
    is_checked: bool = True,
) -> Scored:
    """Scores every file of predictions against the references.

    Args:
        on_block: called with the references done so far and their number.
        is_checked: whether sacrebleu, jieba and bert-score recompute scores of a sample.

    Raises:
        UsageError: nothing to score, an unknown or refused metric, two systems of one name.
        DataError: a file that is not what it should be.
    """
    metrics = _metrics(settings)
    notes = _teach_steps(metrics, settings)
    references = _references(settings)
    if not references.has_ids:
        notes.append("paired by row: neither side has ids")
    systems = _read_systems(settings, references)
    references = _grouped_by(systems, references)
    if settings.bootstrap:
        notes.append(references.grouping.line)
    everything = systems + (anchors(references, settings.seed) if settings.anchors else [])
    evaluated = evaluate(references, everything, metrics, on_block)
    people = leave_one_out(references, metrics, None, on_block) if settings.anchors else None
    beside = [leave_one_out(references, metrics, one, on_block) for one in systems if people]
    notes += _about_several(references, people)
    n = len(systems)  # the anchors follow
    checks = check_by_peers(references, systems, evaluated[:n], metrics) if is_checked else []
    shown = [*evaluated, people] if people else evaluated
    report = ScoreReport(
        references=references.name,
        n_references=len(references.ids),
        n_references_missing=sum(item is None for item in references.items),
        references_sha256=references.sha256,
        grouping=references.grouping,
        scores=tuple(scores_of(shown, metrics, references, settings.resampling)),
        beside_people=tuple(
            scores_of(
                [found for found in (*beside, people) if found],
                [metric for metric in metrics if isinstance(metric, Metric)],
                references,
                settings.resampling,
            )
        ),
        systems=tuple(_counts_of(everything, people)),
        warnings=(
            *_warnings(references, systems),
            *references.grouping.warnings,
            *_warnings_of_intervals(settings, references),
            *_notes_of_metrics(evaluated, metrics),
            *(check.warning for check in checks if check.warning),
        ),
        notes=(*notes, *(check.line for check in checks)),
        checks=tuple(checks),
    )
    return Scored(report, references, everything, evaluated, metrics)


def _metrics(settings: ScoreSettings) -> list[AnyMetric]:
    """Those named; of a preset's neural ones that cannot run here only the place and the reason."""
    metrics: list[AnyMetric] = []
    for one in metrics_named(settings.metrics, NeuralSettings.part_of(settings)):
        optional = one if isinstance(one, NeuralMetric) and one.is_optional else None
        reason = optional.why_absent() if optional else None
        metrics.append(Absent(optional, reason) if optional and reason else one)
    return metrics


def _counts_of(
    systems: Sequence[Predictions], people: SystemScores | None
) -> Iterator[SystemCounts]:
    for one in systems:
        yield SystemCounts(system=one.system, is_anchor=not one.counts, **one.counts)
    if people:
        yield SystemCounts(system=people.system, is_anchor=True)


def _notes_of_metrics(
    evaluated: Sequence[SystemScores], metrics: Sequence[AnyMetric]
) -> Iterator[str]:
    for one in evaluated:
        for metric in metrics:
            if isinstance(metric, Metric):
                for note in metric.notes(one.matrices[metric.name]):
                    yield f"{one.system}: {note}"


def _grouped_by(systems: Sequence[Predictions], references: References) -> References:
    """With the questions that the first file of predictions names, where the references do not."""
    ignored = list(references.grouping.ignored)
    for one in systems:
        if one.clusters and references.grouping.by is None:
            references = replace(references, clusters=one.clusters, grouping=one.grouping)
        ignored += one.grouping.ignored
    grouping = references.grouping.model_copy(update={"ignored": tuple(dict.fromkeys(ignored))})
    return replace(references, grouping=grouping)


def _references(settings: ScoreSettings) -> References:
    named = (settings.ref_column, settings.cluster_column, settings.encoding)
    if settings.ref and settings.predictions:
        columns = Columns(settings.ref_id_column, *named, prefix="--ref-")
        places = [path.resolve() for path in settings.ref]
        if len(set(places)) < len(places):
            raise UsageError("one file is given to --ref twice", hint="give each file once")
        return joined_references(
            [read_references(path, columns, settings.split) for path in settings.ref]
        )
    if not bring_references(settings.predictions, settings.encoding, settings.ref_column):
        raise UsageError(
            "nothing to score" if settings.ref else "no references",
            hint="cbtqa score predictions.jsonl --ref cbtqa-dataset; invented questions with "
            f"answers, to try it: --ref {bundled_sample_path()}",
        )
    return read_own_references(settings.predictions, Columns(settings.id_column, *named))


def _about_several(references: References, people: SystemScores | None) -> list[str]:
    """How many answers the questions have, where any has several, and what people score."""
    n = [count for count in references.n_texts if count]
    if not references.others:
        return []
    lines = [
        f"{len(n):,} questions with {sum(n):,} reference answers, {min(n)} to {max(n)} each: BLEU "
        "by counts over all of them, every other metric by the best"
    ]
    if people:
        lines.append(
            f"`{LEFT_OUT}`: in the {len(people.rows):,} questions with two references or more, "
            "each of them against the others, averaged: what one more author of references scores. "
            "Systems have one reference more there; beside people, each is left out for all alike"
        )
    return lines


def bring_references(
    predictions: Sequence[Path], encoding: str = "utf-8", column: str | None = None
) -> bool:
    """Whether every file of predictions holds its own references, so that none need be named."""
    return bool(predictions) and all(
        brings_references(Path(path), encoding, column) for path in predictions
    )


def _teach_steps(metrics: Sequence[AnyMetric], settings: ScoreSettings) -> list[str]:
    """Gives the CBT step metrics the model asked for; returns what to tell of it."""
    mine = [metric for metric in metrics if isinstance(metric, StepsInOrder)]
    if not mine:
        return []
    notes, wanted = [], settings.step_classifier
    if wanted != "shipped":
        learnt = train_step_model(read_steps(DatasetFolder.open(Path(wanted)), "train"))
        for metric in mine:
            metric.model = learnt
        notes.append(f"CBT steps by a classifier learnt from {wanted}")
    built = [DatasetFolder.open(path) for path in settings.ref if is_dataset_folder(path)]
    known = [answer for folder in built for answer in read_steps(folder, "all")]
    if len(known) >= FEW_ITEMS:
        right = measure(mine[0].model, known)
        notes.append(
            f"CBT steps: of {right.n_answers} reference answers, which have all five, the "
            f"classifier finds {right.steps:.3f} of the steps, puts {right.sentences:.3f} of the "
            f"sentences into the right one, and calls {right.complete:.3f} complete"
        )
    return notes


def _read_systems(settings: ScoreSettings, references: References) -> list[Predictions]:
    columns = Columns(settings.id_column, settings.prediction_column, None, settings.encoding)
    split = settings.split if any(map(has_splits, settings.ref)) else None
    systems: list[Predictions] = []
    for path in settings.predictions:
        if any(path.exists() and ref.exists() and path.samefile(ref) for ref in settings.ref):
            raise UsageError(
                f"{path} is given as predictions and as references",
                hint="the row `references` already shows what they score against themselves",
            )
        read = read_predictions(path, columns, references, split)
        names = {system.system for system in systems}
        # the same model from two files: the files' names tell them apart
        own_name = path.name if path.is_dir() else path.stem
        name = own_name if read.system in names else read.system
        if name in names:
            raise UsageError(
                f"two files name their system '{name}'", hint="rename one of the files"
            )
        systems.append(replace(read, system=name))
    return systems


PREDICTED, REFERRED = (
    ("prediction", "predict", "response", "text"),
    ("reference", "label", "answer"),
)
"""Columns that speak for predictions and for references, when each stands on the other side."""


def _warnings(references: References, systems: Sequence[Predictions]) -> list[str]:
    found = []
    n_clusters = len(set(references.clusters))
    if n_clusters < FEW_ITEMS:
        found.append(
            f"only {n_clusters} questions: below {FEW_ITEMS}, intervals and tests say little"
        )
    for system in systems:
        counts = system.counts
        if references.text_column in PREDICTED and system.text_column in REFERRED:
            found.append(
                f"{system.system}: its text is in `{system.text_column}`, that of the "
                f"references in `{references.text_column}`; are the two swapped?"
            )
        if counts["n_missing"] or counts["n_none"]:
            found.append(
                f"{system.system}: {counts['n_missing']} references have no prediction and "
                f"{counts['n_none']} predictions hold no answer; these are not scored"
            )
        if counts["n_not_in_references"]:
            found.append(
                f"{system.system}: {counts['n_not_in_references']} predictions have no reference"
            )
        if _is_hardly_chinese(system):
            found.append(
                f"{system.system}: hardly any Chinese characters; is this the right column?"
            )
        ours, theirs = _is_traditional(system.items), _is_traditional(references.items)
        if None not in (ours, theirs) and ours != theirs:
            names = {True: "traditional", False: "simplified", None: ""}
            found.append(
                f"{system.system}: in {names[ours]} characters, and the references are in "
                f"{names[theirs]} ones: most words count as different; convert one side first"
            )
    texts = {one.system: [item and item.text for item in one.items] for one in systems}
    found += [
        f"{one} and {other} hold the same answers"
        for one, other in combinations(texts, 2)
        if texts[one] == texts[other]
    ]
    return found


def _warnings_of_intervals(settings: ScoreSettings, references: References) -> list[str]:
    n = len(set(references.clusters))
    if settings.interval == "t" or not settings.bootstrap or n >= FEWEST_FOR_BOOTSTRAP:
        return []
    return [
        f"percentile intervals are too narrow on {n} questions: of 95 in 100 they hold 82 on 5 "
        "questions, 89 on 10, 92 on 20; --interval t holds its level"
    ]


def _is_traditional(items: Sequence[Item | None]) -> bool | None:
    """Whether a side is in traditional script; None for text without Chinese characters."""
    text = "".join(item.text for item in items[:200] if item is not None)
    letters = [letter for letter in text if letter > "\u33ff" and letter.isalpha()]
    return sum(map(is_traditional, letters)) * 20 > len(letters) if letters else None


def _is_hardly_chinese(system: Predictions) -> bool:
    text = "".join(item.text for item in system.items[:200] if item is not None)
    return (
        bool(text) and sum("\u4e00" <= character <= "\u9fff" for character in text) < len(text) / 5
    )
