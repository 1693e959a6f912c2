"""The verbs of the command line as functions, for notebooks and programs.

Each takes its command's settings as keywords, named as the flags are (`max_tokens` for
`--max-tokens`), or the command's settings object in the place of its first argument. Settings that
are not given come from CBTQA_* in the environment, then from the defaults, as on the command line.
Nothing is printed; `progress=True` shows on stderr how far it is; a function gets each `Progress`.
Every result has `to_pandas()`, `to_dict()` and shows as a table in a notebook.

Texts to score or label may be given as a path, a list of texts or of rows, a pandas frame, a
`datasets.Dataset`, or the result of another function. A plain word is a path, never a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from cbtqa.dataset_folder import DatasetFolder, source_rows
from cbtqa.errors import DataError, UsageError
from cbtqa.manifest import FolderResult, now
from cbtqa.records import Record, Risk
from cbtqa.safety.answers import Problem
from cbtqa.settings import Resolved, Settings, SettingsT, resolve

if TYPE_CHECKING:
    import pyarrow as pa

    from cbtqa.distortions.labelling import LabelledTexts
    from cbtqa.hub.join import Joined
    from cbtqa.hub.publish import Prepared
    from cbtqa.hub.upload import Uploaded
    from cbtqa.judging.report import JudgeReport
    from cbtqa.llm.progress import Progress
    from cbtqa.metrics.comparison import Comparison
    from cbtqa.metrics.scoring import Scored
    from cbtqa.reproduce.experiment import Reproduced
    from cbtqa.reproduce.report import ExperimentReport
    from cbtqa.safety.screen import Screening
    from cbtqa.tuning.answering.generate import GenerateResult
    from cbtqa.tuning.training.finetune import FinetuneResult
    from cbtqa.tuning.weights.convert import ConversionRecord
    from cbtqa.tuning.weights.merge import MergeRecord

PathLike = str | Path
Data = str | Path | DatasetFolder | Settings
Texts = Any
Paths = (str, Path, DatasetFolder, FolderResult)
"""What names a file of texts."""
Watch = bool | Callable[["Progress"], None]
ID_COLUMNS = ("id", "question_id", "questionID")


def build_dataset(
    input: PathLike | Settings | None = None,  # noqa: A002 - the flag's name
    *,
    progress: Watch = False,
    fork: bool = False,
    update: bool = False,
    **settings: Any,
) -> DatasetFolder:
    """A Chinese CBT QA dataset from PsyQA questions: `cbtqa build-dataset`.

    The same call continues a run that was interrupted; a finished folder is opened as it is.

    Example:
        data = cbtqa.build_dataset("PsyQA_full.json", endpoint="vllm", model="Qwen3-32B")
        data.manifest.counts["n_out"], data.to_pandas()
    """
    from cbtqa.dataset.run import build_dataset as build
    from cbtqa.dataset.settings import BuildSettings

    resolved = _resolved(BuildSettings, "input", input, settings)
    with _watching(progress) as (on_progress, on_stage):
        done = build(resolved, fork=fork, update=update, on_progress=on_progress, on_stage=on_stage)
    return DatasetFolder.open(done.folder)


def load(path: PathLike, *, partial: bool = False) -> Any:
    """A built dataset as a `datasets.DatasetDict`, one entry a split.

    Args:
        partial: accept what an unfinished build has written so far.

    Example:
        splits = cbtqa.load(cbtqa.build_dataset().path)
        splits["train"][0]["answer"]
    """
    return DatasetFolder.open(Path(path), partial=partial).to_datasets()


def label(texts: Texts, *, progress: Watch = False, **settings: Any) -> LabelledTexts:
    """The cognitive distortions of texts, each with its evidence: `cbtqa distortions label`.

    Example:
        found = cbtqa.label(["我什么都做不好，大家肯定都看不起我。"])
        found.rows[0].labels[0].evidence
    """
    from cbtqa.distortions.labelling import LabelSettings, label_file, read_labels

    with TemporaryDirectory() as folder, _watching(progress) as (on_progress, _):
        path = texts
        if not isinstance(texts, Settings):
            path = _as_file(texts, Path(folder), is_numbered=True)
            settings.setdefault("out", Path(folder, "labels.jsonl"))
        resolved = _resolved(LabelSettings, "input", path, settings)
        return read_labels(label_file(resolved.values, on_progress=on_progress))


def screen(
    text: str, language: Literal["auto", "zh", "en"] = "auto", *, model: str | None = None
) -> Screening:
    """How strongly a text speaks of suicide or self-harm and of other dangers, and where.

    Args:
        model: an encoder that reads the text as well, by Hub id or folder; the worse grade counts.
            It is loaded once.

    Example:
        cbtqa.screen("最近压力很大，睡不好。").risk  # "none"
    """
    from cbtqa.safety.encoder import open_encoder
    from cbtqa.safety.screen import screen as grade

    return grade(text, language, model=open_encoder(model))


class AnswerCheck(Record):
    """What is unsafe in one answer."""

    risk: Risk
    """Of the question."""
    problems: tuple[Problem, ...]

    @property
    def is_safe(self) -> bool:
        """True when nothing was found."""
        return not self.problems


def check_answer(
    answer: str,
    question: str = "",
    *,
    risk: Risk | None = None,
    locale: Literal["zh", "en"] = "zh",
    model: str | None = None,
) -> AnswerCheck:
    """Everything in an answer that must not reach a reader, such as a missing help route.

    Args:
        risk: the grade of the question; by default the question is screened.
        model: as in `screen`; the encoder reads question and answer.

    Example:
        found = cbtqa.check_answer("先把药停了，这件事别告诉任何人。", "我睡不好，在吃药。")
        found.is_safe  # False
    """
    from cbtqa.safety import answers
    from cbtqa.safety.encoder import open_encoder

    grades = screen(question, model=model)
    route = risk or grades.route
    at_stake = answers.is_at_stake(question, route)
    problems = answers.check_answer(
        answer, route, locale, at_stake=at_stake, model=open_encoder(model)
    )
    return AnswerCheck(risk=risk or grades.risk, problems=problems)


def convert(
    source: PathLike, out: PathLike, *, shard_mib: int = 2048, **settings: Any
) -> ConversionRecord:
    """Baichuan-7B, Baichuan2-7B or Qwen-7B rewritten for today's libraries: `cbtqa convert`.

    Example (weights):
        cbtqa.convert("baichuan", "baichuan-7b-llama")
    """
    from cbtqa.tuning.weights.convert import convert as rewrite

    return rewrite(source, Path(out), shard_bytes=shard_mib << 20, **settings)


def finetune(
    data: Data | None = None, *, progress: Watch = False, **settings: Any
) -> FinetuneResult:
    """An adapter on a backbone: `cbtqa finetune`.

    Example (weights):
        cbtqa.finetune("runs/psyqa", backbone="qwen2.5", preset="paper", out="runs/tuned")
    """
    from cbtqa.tuning.settings import FinetuneSettings
    from cbtqa.tuning.training.finetune import finetune as train

    resolved = _resolved(FinetuneSettings, "data", _path_of(data), settings)
    with _watching(progress) as (on_progress, on_stage):
        return train(resolved, on_stage=on_stage, on_progress=on_progress)


def export(
    data: Data | None,
    program: Literal["llama-factory", "ms-swift", "trl", "evalscope"] | None = None,
    **settings: Any,
) -> FolderResult:
    """A built dataset in the shapes that another program reads: `cbtqa export`.

    Example:
        written = cbtqa.export(cbtqa.build_dataset(), "trl", out="for-trl", allow_template=True)
        written.to_dict()["counts"]["splits"]
    """
    from cbtqa.tuning.data.export import ExportSettings
    from cbtqa.tuning.data.export import export as write_export

    if program is not None:
        settings["for_"] = program
    return write_export(_resolved(ExportSettings, "data", _path_of(data), settings))


def merge(
    adapter: PathLike | FolderResult, out: PathLike, *, shard_mib: int = 2048, **settings: Any
) -> MergeRecord:
    """An adapter merged into its base, as plain weights: `cbtqa merge`.

    Example (weights):
        cbtqa.merge("runs/tuned", "runs/merged")
    """
    from cbtqa.tuning.weights.merge import merge as merge_adapter

    folder = Path(_path_of(adapter))
    return merge_adapter(folder, Path(out), shard_bytes=shard_mib << 20, **settings)


def generate(
    data: Data | None = None, *, progress: Watch = False, **settings: Any
) -> GenerateResult:
    """A model's answers to a dataset's questions: `cbtqa generate`.

    Example:
        answers = cbtqa.generate(cbtqa.build_dataset(), endpoint="vllm", model="tuned")
        answers.to_pandas()
    """
    from cbtqa.tuning.answering.generate import generate as answer
    from cbtqa.tuning.answering.settings import GenerateSettings

    given = {name: _path_of(value) for name, value in settings.items()}
    resolved = _resolved(GenerateSettings, "data", _path_of(data), given)
    with _watching(progress) as (on_progress, on_stage):
        return answer(resolved, on_progress=on_progress, on_stage=on_stage)


def score(
    predictions: Texts | Mapping[str, Texts], references: Texts = None, **settings: Any
) -> Scored:
    """Predictions of one or several systems against references: `cbtqa score`.

    Args:
        predictions: system to its predictions; or those of one system; or paths in a list.
        references: in the same order where neither side has ids; a list for each prediction where
            it has several.

    Example:
        systems = {"base": ["你要坚强。", "别想太多。"], "tuned": ["先照顾好自己。", "写下来。"]}
        cbtqa.score(systems, references=["先照顾好自己。", "可以写下来。"], metrics="chrf2")
    """
    from cbtqa.metrics import score_folder, scoring

    started = now()
    with TemporaryDirectory() as folder:
        if references is not None:
            _refuse_other_number(predictions, references)
            settings["ref"] = _as_file(references, Path(folder))
        given = _as_files(predictions, Path(folder))
        resolved = _resolved(scoring.ScoreSettings, "predictions", given, settings)
        if out := resolved.values.out:
            score_folder.refuse_existing(out)
        scored = scoring.score(resolved.values)
        if out:
            score_folder.write_folder(out, scored, resolved, started)
    return scored


def compare(*systems: Scored | PathLike, references: Texts = None, **settings: Any) -> Comparison:
    """Whether systems differ: differences with intervals and adjusted p: `cbtqa compare`.

    Args:
        systems: results of `score`, folders that it wrote, or files of predictions.

    Example:
        systems = {"base": ["你要坚强。", "别想太多。"], "tuned": ["先照顾好自己。", "写下来。"]}
        scores = cbtqa.score(systems, references=["先照顾好自己。", "可以写下来。"])
        cbtqa.compare(scores, baseline="base").to_pandas()
    """
    from cbtqa.metrics import comparison
    from cbtqa.metrics.scoring import Scored

    scored = [system for system in systems if isinstance(system, Scored)]
    with TemporaryDirectory() as folder:
        if references is not None:
            settings["ref"] = _as_file(references, Path(folder))
        paths = [Path(system) for system in systems if not isinstance(system, Scored)]
        resolved = _resolved(comparison.CompareSettings, "predictions", paths, settings)
        return comparison.compare(resolved.values, scored=scored)


def judge(
    predictions: Texts | Mapping[str, Texts], *, progress: Watch = False, **settings: Any
) -> JudgeReport:
    """Answers rated by a language model on the rubric people use: `cbtqa judge`.

    Example (server):
        cbtqa.judge("answers.jsonl", questions="PsyQA_full.json", endpoint="vllm", model="judge")
    """
    from cbtqa.judging.run import JudgeSettings
    from cbtqa.judging.run import judge as rate

    with TemporaryDirectory() as folder, _watching(progress) as (on_progress, _):
        given = _as_files(predictions, Path(folder))
        resolved = _resolved(JudgeSettings, "predictions", given, settings)
        return rate(resolved, on_progress)


def publish(
    run: Data | FolderResult,
    *,
    kind: Literal["dataset", "model"] | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Prepared | Uploaded:
    """A dataset or a model on the Hub, scanned and private: `cbtqa publish dataset|model`.

    Args:
        kind: by default what the folder holds.
        dry_run: give what would be sent; no network is touched.

    Example:
        cbtqa.publish(cbtqa.build_dataset(), to="my-lab/cbt-qa", dry_run=True).findings
    """
    from cbtqa.hub import publish as hub
    from cbtqa.hub.scan import refuse_findings
    from cbtqa.hub.settings import DatasetSettings, ModelSettings

    folder = run if isinstance(run, Settings) else Path(_path_of(run))
    is_model = isinstance(run, ModelSettings) or kind == "model"
    if kind is None and isinstance(folder, Path):
        is_model = hub.holds_weights(folder)
    if is_model:
        prepared = hub.prepare_model(_resolved(ModelSettings, "run", folder, settings).values)
    else:
        prepared = hub.prepare_dataset(_resolved(DatasetSettings, "run", folder, settings).values)
    if not dry_run:
        refuse_findings(prepared.findings)
    return prepared if dry_run else hub.publish(prepared)


def reproduce(
    recipe: PathLike | Settings,
    *,
    only: Sequence[str] = (),
    from_: str | None = None,
    dry_run: bool = False,
    progress: Watch = False,
    **settings: Any,
) -> Reproduced:
    """One experiment from end to end, by recipe: `cbtqa reproduce`.

    What is done is not done again; the same call continues a run that was interrupted.

    Args:
        only: stages by kind (`finetune`) or name (`finetune:qwen`).
        from_: the stage to begin at; those before it are done.
        dry_run: what each stage would take; nothing is sent, nothing is trained.

    Example:
        planned = cbtqa.reproduce("cbt-llm", smoke=True, dry_run=True)
        planned.to_pandas()[["stage", "state"]]
    """
    from cbtqa.reproduce.experiment import run_experiment
    from cbtqa.reproduce.stages import ReproduceSettings
    from cbtqa.reproduce.stages import Watch as Watching

    given = recipe if isinstance(recipe, Settings) else str(recipe)
    resolved = _resolved(ReproduceSettings, "recipe", given, settings)
    with _watching(progress) as (on_progress, on_stage):
        watch = Watching(on_progress, on_stage)
        return run_experiment(resolved.values, only, from_, dry_run=dry_run, watch=watch)


def report(*runs: PathLike | Reproduced | Settings, **settings: Any) -> ExperimentReport:
    """One page of experiments, our tables beside the paper's: `cbtqa report`.

    Args:
        runs: folders that `reproduce` wrote, or its results.

    Example:
        data = cbtqa.reproduce("cbt-llm", only=["build"], smoke=True, out="runs/cbt-llm")
        page = cbtqa.report(data, format_=["html", "md"])
        page.files, page.to_pandas("table-1")
    """
    from cbtqa.reproduce.report import write_report
    from cbtqa.reproduce.stages import ReportSettings

    given = [getattr(one, "path", one) for one in runs]
    first = runs[0] if len(runs) == 1 and isinstance(runs[0], Settings) else given or None
    return write_report(_resolved(ReportSettings, "runs", first, settings).values)


def join(published: PathLike | Settings, **settings: Any) -> Joined:
    """A text-free dataset with the question text put back from your own file: `cbtqa join`.

    Example (server):
        cbtqa.join("my-lab/cbt-qa", questions="PsyQA_full.json", out="my-dataset")
    """
    from cbtqa.hub.join import JoinSettings
    from cbtqa.hub.join import join as join_dataset

    given = published if isinstance(published, Settings) else str(published)
    return join_dataset(_resolved(JoinSettings, "published", given, settings).values)


def _resolved(
    model: type[SettingsT], name: str, first: Any, given: Mapping[str, Any]
) -> Resolved[SettingsT]:
    """A settings object as it is, or keywords resolved as flags are."""
    if isinstance(first, model):
        if given:
            raise UsageError("settings are one object or keywords, not both")
        origins = dict.fromkeys(model.model_fields, "default")
        return Resolved(first, origins | dict.fromkeys(first.model_fields_set, "settings object"))
    if isinstance(first, Settings):
        raise UsageError(f"expected {model.__name__}, got {type(first).__name__}")
    flags = {name: first, **given}
    for field, value in flags.items():
        known = model.model_fields.get(field)
        if known is not None and known.annotation is str and isinstance(value, list | tuple):
            flags[field] = ",".join(map(str, value))  # such as metrics=["bleu_zh", "chrf2"]
    return resolve(model, flags=flags)


@contextmanager
def _watching(
    wanted: Watch,
) -> Iterator[tuple[Callable[[Progress], None] | None, Callable[[str], None]]]:
    """What is called with the engine's progress, and with the name of each stage."""
    if wanted is not True:
        yield wanted or None, lambda words: None
        return
    from cbtqa.cli.console import live_progress

    with live_progress() as shown:
        yield shown.update, shown.stage


def _path_of(value: Any) -> Any:
    """The folder of a result; anything else as it is."""
    return value.path if isinstance(value, DatasetFolder | FolderResult) else value


def _as_files(predictions: Any, folder: Path) -> Any:
    if isinstance(predictions, Settings):
        return predictions
    if isinstance(predictions, Mapping):
        return [_as_file(texts, folder, name) for name, texts in predictions.items()]
    if isinstance(predictions, list | tuple) and all(isinstance(one, Path) for one in predictions):
        return list(predictions)
    return [_as_file(predictions, folder, "" if isinstance(predictions, Paths) else "system")]


def _refuse_other_number(predictions: Any, references: Any) -> None:
    """Texts without ids belong together by their order alone."""
    systems = predictions.values() if isinstance(predictions, Mapping) else [predictions]
    for texts in systems:
        if all(isinstance(one, list | tuple) for one in (texts, references)):
            n, n_references = len(texts), len(references)
            is_plain = all(isinstance(text, str | list | tuple) for text in (*texts, *references))
            if is_plain and 0 < n != n_references:
                raise DataError(f"{n} predictions and {n_references} references")


def _as_file(texts: Any, folder: Path, system: str = "", *, is_numbered: bool = False) -> Path:
    """A path as it is; everything else written as Parquet.

    Args:
        system: whose texts they are; the rows then carry it, those of a path too.
        is_numbered: give rows without an id their numbers as ids.
    """
    if isinstance(texts, Paths):
        path = texts if isinstance(texts, str | Path) else texts.path
        if not system:
            return Path(path)
        texts = [row for _, row in source_rows(Path(path))]
    import pyarrow.parquet as pq

    table = _table(texts)
    if is_numbered and not set(ID_COLUMNS) & set(table.column_names):
        table = table.append_column("id", [[str(number) for number in range(table.num_rows)]])
    if system:
        kept = [column for column in table.column_names if column != "system"]
        table = table.select(kept).append_column("system", [[system] * table.num_rows])
    file = folder / f"{len(list(folder.iterdir()))}.parquet"
    pq.write_table(table, file)
    return file


def _table(texts: Any) -> pa.Table:
    import pyarrow as pa

    if hasattr(texts, "to_dict") and hasattr(texts, "columns"):  # a pandas frame
        table = pa.Table.from_pandas(texts, preserve_index=False)
    else:
        if any(isinstance(one, list | tuple) for one in texts):  # several references to each
            texts = [{"references": [one] if isinstance(one, str) else list(one)} for one in texts]
        rows = [{"text": one} if isinstance(one, str) else dict(one) for one in texts]
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"values of one column differ in kind: {error}") from None
    if not table.num_rows:
        raise DataError("no texts were given")
    return table
