"""The runs of `cbtqa distortions train`, `evaluate` and `agree`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cbtqa.distortions.annotators import LabelAgreement, measure_agreement
from cbtqa.distortions.encoder_means import open_reader
from cbtqa.distortions.evaluate import F1, AskedModel, EvaluationReport, count_f1, evaluate
from cbtqa.distortions.importers import GoldItem, GoldSet, data_formats, read_gold
from cbtqa.distortions.labellers import Labels, VoteRule, count_votes
from cbtqa.distortions.labelling import open_labeller
from cbtqa.distortions.llm_labeller import (
    OTHER_RUN,
    REPLY_TOKENS,
    Found,
    LlmSettings,
    TextsToLabel,
    cut_document,
    read_outcomes,
)
from cbtqa.distortions.models import describe_model, save_linear, write_signature
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.distortions.training import TrainingSettings, cross_validate, n_fits, train_linear
from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import write_json
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.cost import Estimate
from cbtqa.llm.progress import StepCounter
from cbtqa.llm.runs import estimate_run, open_run
from cbtqa.manifest import refuse_empty
from cbtqa.paths import refuse_existing
from cbtqa.records import Record, Rejection
from cbtqa.settings import Settings

Say = Callable[[str], None]


class GoldSettings(Settings):
    """Where gold labels come from."""

    data: Path
    """Labelled texts: .tsv, .csv, .jsonl, .json or .parquet."""
    format: str = "auto"
    """cogdis, socialcd, c2d2, cbt-bench, therapist, plain; auto tells it by the columns."""
    taxonomy: str | None = None
    """Taxonomy of the labels. Default: the data set's own."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""


class TrainSettings(GoldSettings):
    """Settings of `cbtqa distortions train`."""

    out: Path = Path("distortion-model")
    """Folder of the model."""
    name: str | None = None
    """Short name, for labels `trained:NAME`. Default: linear, or the encoder's."""
    folds: int = Field(5, ge=0, le=20)
    """Folds that measure it; 0 leaves it out."""
    encoder: str | None = None
    """Use this transformers encoder (folder or Hub id); needs the extra `neural`."""
    encoder_use: Literal["tune", "read"] = "tune"
    """For --encoder: tune changes its weights and wants a GPU. Read leaves them, and adds what it
    makes of a text to the light model: minutes on a CPU, and --encoder must stay where it is."""
    epochs: int = Field(4, ge=1)
    """For --encoder-use tune: passes over the texts."""
    strength: float = Field(3.0, gt=0)
    """How closely the weights follow the data."""
    invented: bool = True
    """Learn from the package's invented Chinese texts on rare types as well (light model)."""
    at_least_one: Literal["auto", "yes", "no"] = "auto"
    """Give every text at least one type; auto: when every training text has one."""
    seed: int = 0
    """Seed of every split."""

    @property
    def short_name(self) -> str:
        """The name in use."""
        return self.name or (Path(self.encoder).name if self.encoder else "linear")


class EvaluateSettings(GoldSettings, LlmSettings):
    """Settings of `cbtqa distortions evaluate`; the endpoint is for the llm."""

    labeller: tuple[str, ...] = ("patterns",)
    """patterns, the folder of a trained model, llm, or a built dataset whose own labels are
    measured; may be repeated. vote is a vote of all others that are named."""
    vote: VoteRule = "majority"
    """How vote decides: majority, any or all."""
    cluster_column: str | None = None
    """Column that says which document a text is a sentence of: documents are drawn then, not
    texts. Default: question_id, document_id and the like, or an id that several texts share."""
    errors: int = Field(10, ge=0)
    """Instructive errors to show for each labeller."""
    out: Path | None = None
    """Write the whole report there as JSON."""
    overwrite: bool = False
    """Replace the report of an earlier run."""


class TrainedReport(Record):
    name: str
    kind: Literal["linear", "encoder"]
    taxonomy: str
    n_texts: int
    n_duplicates: int
    n_contradictions: int
    n_folds: int = 0
    binary: F1 | None = None
    micro: F1 | None = None
    macro_f1: float | None = None
    types: dict[str, F1] = Field(default_factory=dict)


def train_labeller(
    settings: TrainSettings, say: Say, *, on_progress: OnProgress | None = None
) -> TrainedReport:
    """Reads the data, measures a model by cross-validation, trains on all of it, saves it."""
    gold = _read_gold(settings, say)
    if settings.out.exists() and any(settings.out.iterdir()):
        raise ConfigError(f"--out: {settings.out} is not empty")
    if settings.encoder is not None and settings.encoder_use == "tune":
        return _tune(settings, gold, on_progress)
    shared = settings.model_dump(include={"strength", "invented", "at_least_one", "seed"})
    training = TrainingSettings(**shared)
    data = gold.texts, gold.matrix, gold.taxonomy, training
    reader = open_reader(settings.encoder) if settings.encoder else None
    given = None
    n_all = n_fits(gold.taxonomy, training, settings.folds)
    how: dict[str, Any] = {"reader": reader, "say": say}
    how["counter"] = StepCounter(on_progress, n_all, "fits")
    if settings.folds:
        say(f"measuring by {settings.folds}-fold cross-validation (seed {settings.seed})")
        given = cross_validate(*data, n_folds=settings.folds, **how) > 0
    report = _report(settings, gold, given)
    say(f"training on {len(gold.items):,} texts")
    model = train_linear(*data, name=settings.short_name, **how)
    estimate = None
    if report.micro and report.binary:
        estimate = {
            **report.model_dump(include={"n_folds", "macro_f1", "types"}),
            "micro_f1": report.micro.f1,
            "binary_f1": report.binary.f1,
        }
    signature = describe_model("linear", settings.short_name, gold, training.model_dump(), estimate)
    save_linear(settings.out, model, signature)
    return report


def _tune(settings: TrainSettings, gold: GoldSet, on_progress: OnProgress | None) -> TrainedReport:
    from cbtqa.distortions.encoder import EncoderSettings, tune_encoder

    encoder = EncoderSettings(
        encoder=str(settings.encoder), epochs=settings.epochs, seed=settings.seed
    )

    counters: list[StepCounter] = []

    def on_step(step: int, n_steps: int, loss: float) -> None:
        if not counters:
            counters.append(StepCounter(on_progress, n_steps, "steps"))
        counters[0].step(f"loss {loss:.4f}")

    tune_encoder(gold, encoder, settings.out, name=settings.short_name, on_step=on_step)
    described = {**encoder.model_dump(), "encoder": Path(encoder.encoder).name}
    write_signature(
        settings.out, describe_model("encoder", settings.short_name, gold, described, None)
    )
    return _report(settings, gold, None)


def _report(settings: TrainSettings, gold: GoldSet, given: Any) -> TrainedReport:
    truth = gold.matrix
    measured: dict[str, Any] = {}
    if given is not None:
        columns = zip(gold.taxonomy.ids, truth.T, given.T, strict=True)
        types = {type_id: count_f1(gold_column, column) for type_id, gold_column, column in columns}
        values = [entry.f1 for entry in types.values() if entry.f1 is not None]
        measured = {
            "n_folds": settings.folds,
            "binary": count_f1(np.asarray(truth.any(axis=1)), np.asarray(given.any(axis=1))),
            "micro": count_f1(truth, given),
            "macro_f1": sum(values) / len(values) if values else None,
            "types": types,
        }
    return TrainedReport(
        name=settings.short_name,
        kind="encoder" if settings.encoder and settings.encoder_use == "tune" else "linear",
        taxonomy=gold.taxonomy.id,
        n_texts=len(gold.items),
        n_duplicates=gold.n_duplicates,
        n_contradictions=gold.n_contradictions,
        **measured,
    )


def _read_gold(settings: GoldSettings, say: Say, cluster_column: str | None = None) -> GoldSet:
    gold = read_gold(
        settings.data,
        form=settings.format,
        taxonomy=settings.taxonomy,
        encoding=settings.encoding,
        cluster_column=cluster_column,
    )
    say(f"{gold.name}: {len(gold.items):,} of {gold.n_rows:,} rows; taxonomy {gold.taxonomy.id}")
    if gold.n_duplicates or gold.n_contradictions:
        say(f"left out: {gold.n_duplicates} repeated, {gold.n_contradictions} contradictory rows")
    say(f"terms of the data: {gold.licence}")
    return gold


def evaluate_labellers(
    settings: EvaluateSettings, say: Say, *, on_progress: OnProgress | None = None
) -> EvaluationReport:
    """The report; written too where the settings name a place.

    Raises:
        UsageError: labellers that cannot be told apart, or no place for what a model answers.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
    """
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite or bool(settings.retry))
    _check_labellers(settings)
    gold = _read_gold(settings, say, settings.cluster_column)
    _say_what_is_drawn(gold, say)
    specs = [spec for spec in settings.labeller if spec not in ("llm", "vote")]
    given: dict[str, Sequence[Labels]] = {}
    for spec in specs:
        labeller = open_labeller(spec, gold.taxonomy)
        if labeller.name in given:
            hint = "train one with another name: cbtqa distortions train DATA --name NAME"
            raise UsageError(f"two labellers have one name: {labeller.name}", hint=hint)
        given[labeller.name] = labeller.label_many(gold.texts)
    asked = None
    if "llm" in settings.labeller:
        labels, asked = _ask_llm(gold, settings, on_progress)
        given[f"llm:{asked.model}"] = labels
        if asked.n_rejected:
            say(f"{asked.n_rejected} texts without valid labels from the model: counted as none")
    if "vote" in settings.labeller:
        ballots = zip(*given.values(), strict=True)
        given[f"vote:{settings.vote}"] = [count_votes(one, settings.vote) for one in ballots]
    report = evaluate(gold, given, n_errors=settings.errors)
    report = report.model_copy(update={"file": settings.data.name, "asked": asked})
    if settings.out is not None:
        write_json(settings.out, report)
    return report


def _check_labellers(settings: EvaluateSettings) -> None:
    voters = [spec for spec in settings.labeller if spec != "vote"]
    if "vote" in settings.labeller and len(voters) < 2:
        hint = "--labeller MODEL --labeller llm --labeller vote --vote any"
        raise UsageError("--labeller vote is a vote of two or more others", hint=hint)
    if "llm" in settings.labeller and settings.out is None:
        raise UsageError("what a model answers is kept: name a file with --out")


def _say_what_is_drawn(gold: GoldSet, say: Say) -> None:
    parts_of = data_formats()[gold.name].parts_of
    if gold.cluster_column is not None:
        n_documents = len(set(gold.clusters or ()))
        say(f"intervals draw {n_documents:,} documents (column {gold.cluster_column}), not texts")
    elif parts_of is not None:
        say(
            f"warning: the texts are sentences of {parts_of} and no column says of which: "
            "intervals take each for itself and may be too narrow (--cluster-column)"
        )


def _ask_llm(
    gold: GoldSet, settings: EvaluateSettings, on_progress: OnProgress | None
) -> tuple[list[Labels], AskedModel]:
    """The model's labels of the gold's texts; those of one document are asked about together."""
    service, task = settings.labelling(gold.taxonomy)
    order, items = _requests_about(gold)
    path = _journal_of(settings)
    opened = open_run(path, task.fingerprint(), service, what="the texts", hint=OTHER_RUN)
    with opened as run:
        run.ask(items, task, n_total=len(items), on_progress=on_progress)
        outcomes = list(read_outcomes(items, task, run.journal))
        asked = AskedModel(
            model=service.model,
            endpoint_host=service.host,
            convention=settings.convention,
            prompt=task.prompt_name,
            min_confidence=settings.least_confidence,
            n_requests=len(items),
            n_rejected=sum(isinstance(one, Rejection) for one in outcomes),
            usage=run.usage,
            cost=run.cost,
        )
    failed = Counter(str(one.reason) for one in outcomes if isinstance(one, Rejection))
    n_in = len(outcomes)
    refuse_empty(n_in - failed.total(), n_in, "texts was labelled", failed, kept=path)
    labels: list[Labels] = [()] * n_in
    for row, found in zip(order, outcomes, strict=True):
        labels[row] = found.labels if isinstance(found, Found) else ()
    return labels, asked


def _requests_about(gold: GoldSet) -> tuple[list[int], list[TextsToLabel]]:
    """The order in which the gold's texts are asked about, and the requests."""
    documents = gold.clusters or [item.id for item in gold.items]
    order = sorted(range(len(documents)), key=lambda row: documents[row])
    items: list[TextsToLabel] = []
    for document, rows in groupby(order, key=lambda row: documents[row]):
        items += cut_document(document, [gold.items[row].text for row in rows])
    return order, items


def _journal_of(settings: EvaluateSettings) -> Path:
    return (settings.out or Path("evaluation.json")).with_suffix(".journal.sqlite")


def estimate_evaluation(settings: EvaluateSettings, say: Say) -> Estimate:
    """What would still be sent to the llm; the other labellers send nothing."""
    gold = _read_gold(settings, say, settings.cluster_column)
    service, task = None, None
    if "llm" in settings.labeller:
        service, task = settings.labelling(gold.taxonomy)
    path, items = _journal_of(settings), _requests_about(gold)[1]
    return estimate_run(service, path, items, task, name="texts", reply_tokens=REPLY_TOKENS)


def read_annotations(files: Sequence[Path], taxonomy: Taxonomy) -> LabelAgreement:
    """Agreement of annotators, one labelled file each (UsageError below two), matched by id."""
    if len({path.stem for path in files}) < max(2, len(files)):
        raise UsageError("give two or more files, each with a name of its own")
    read = {path.stem: read_gold(path, form="plain", taxonomy=taxonomy.id) for path in files}
    items = [item for gold in read.values() for item in gold.items]
    # sentences of one document may share its id
    is_shared = any(
        len({item.id for item in gold.items}) < len(gold.items) for gold in read.values()
    )

    def key(item: GoldItem) -> str:
        return f"{item.id}\n{item.text}" if is_shared else item.id

    annotations = {
        name: {key(item): item.types for item in gold.items} for name, gold in read.items()
    }
    documents = None
    if any(gold.cluster_column for gold in read.values()):
        documents = {key(item): item.document or key(item) for item in items}
    return measure_agreement(taxonomy, annotations, documents)
