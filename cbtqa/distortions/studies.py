"""The runs of `cbtqa distortions train`, `evaluate` and `agree`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cbtqa.distortions.annotators import LabelAgreement, measure_agreement
from cbtqa.distortions.evaluate import F1, EvaluationReport, count_f1, evaluate
from cbtqa.distortions.importers import GoldSet, data_formats, read_gold
from cbtqa.distortions.labelling import open_labeller
from cbtqa.distortions.models import describe_model, save_linear, write_signature
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.distortions.training import TrainingSettings, cross_validate, train_linear
from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import write_json
from cbtqa.paths import refuse_existing
from cbtqa.records import Record
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
    name: str = "linear"
    """Short name, for labels `trained:NAME`."""
    folds: int = Field(5, ge=0, le=20)
    """Folds that measure it; 0 leaves it out."""
    encoder: str | None = None
    """Tune this transformers encoder (folder or Hub id) instead of the light model; needs the
    extra `neural`."""
    epochs: int = Field(4, ge=1)
    """For --encoder: passes over the texts."""
    strength: float = Field(3.0, gt=0)
    """How closely the weights follow the data."""
    at_least_one: Literal["auto", "yes", "no"] = "auto"
    """Give every text at least one type; auto: when every training text has one."""
    seed: int = 0
    """Seed of every split."""


class EvaluateSettings(GoldSettings):
    """Settings of `cbtqa distortions evaluate`."""

    labeller: tuple[str, ...] = ("patterns",)
    """patterns, or the folder of a trained model; may be repeated."""
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


def train_labeller(settings: TrainSettings, say: Say) -> TrainedReport:
    """Reads the data, measures a model by cross-validation, trains on all of it, saves it."""
    gold = _read_gold(settings, say)
    if settings.out.exists() and any(settings.out.iterdir()):
        raise ConfigError(f"--out: {settings.out} is not empty")
    if settings.encoder is not None:
        return _tune(settings, gold, say)
    shared = settings.model_dump(include={"strength", "at_least_one", "seed"})
    training = TrainingSettings(**shared)
    data = gold.texts, gold.matrix, gold.taxonomy, training
    given = None
    if settings.folds:
        say(f"measuring by {settings.folds}-fold cross-validation (seed {settings.seed})")
        given = cross_validate(*data, n_folds=settings.folds) > 0
    report = _report(settings, gold, given)
    say(f"training on {len(gold.items):,} texts")
    model = train_linear(*data, name=settings.name)
    estimate = None
    if report.micro and report.binary:
        estimate = {
            **report.model_dump(include={"n_folds", "macro_f1", "types"}),
            "micro_f1": report.micro.f1,
            "binary_f1": report.binary.f1,
        }
    signature = describe_model("linear", settings.name, gold, training.model_dump(), estimate)
    save_linear(settings.out, model, signature)
    return report


def _tune(settings: TrainSettings, gold: GoldSet, say: Say) -> TrainedReport:
    from cbtqa.distortions.encoder import EncoderSettings, tune_encoder

    encoder = EncoderSettings(
        encoder=str(settings.encoder), epochs=settings.epochs, seed=settings.seed
    )

    def on_step(step: int, n_steps: int, loss: float) -> None:
        if step % 50 == 0 or step == n_steps:
            say(f"step {step} of {n_steps}, loss {loss:.4f}")

    tune_encoder(gold, encoder, settings.out, name=settings.name, on_step=on_step)
    described = {**encoder.model_dump(), "encoder": Path(encoder.encoder).name}
    write_signature(settings.out, describe_model("encoder", settings.name, gold, described, None))
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
        name=settings.name,
        kind="encoder" if settings.encoder else "linear",
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


def evaluate_labellers(settings: EvaluateSettings, say: Say) -> EvaluationReport:
    """The report; written too where the settings name a place."""
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite)
    gold = _read_gold(settings, say, settings.cluster_column)
    parts_of = data_formats()[gold.name].parts_of
    if gold.cluster_column is not None:
        n_documents = len(set(gold.clusters or ()))
        say(f"intervals draw {n_documents:,} documents (column {gold.cluster_column}), not texts")
    elif parts_of is not None:
        say(
            f"warning: the texts are sentences of {parts_of} and no column says of which: "
            "intervals take each for itself and may be too narrow (--cluster-column)"
        )
    labellers = [open_labeller(spec, gold.taxonomy) for spec in settings.labeller]
    names = [labeller.name for labeller in labellers]
    if len(set(names)) < len(names):
        raise UsageError(f"two labellers have one name: {', '.join(names)}")
    given = {labeller.name: labeller.label_many(gold.texts) for labeller in labellers}
    report = evaluate(gold, given, n_errors=settings.errors)
    report = report.model_copy(update={"file": settings.data.name})
    if settings.out is not None:
        write_json(settings.out, report)
    return report


def read_annotations(files: Sequence[Path], taxonomy: Taxonomy) -> LabelAgreement:
    """Agreement of annotators, one labelled file each (UsageError below two), matched by id."""
    if len({path.stem for path in files}) < max(2, len(files)):
        raise UsageError("give two or more files, each with a name of its own")
    annotations = {}
    for path in files:
        gold = read_gold(path, form="plain", taxonomy=taxonomy.id)
        annotations[path.stem] = {item.id: item.types for item in gold.items}
    return measure_agreement(taxonomy, annotations)
