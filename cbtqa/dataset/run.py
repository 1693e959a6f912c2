"""`build_dataset`: opens the gates, continues or refuses what is there, runs both passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cbtqa.dataset.build import Build, Teacher, exchange_of
from cbtqa.dataset.card import complete_folder
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import EndpointTeacher
from cbtqa.dataset.template.teacher import OfflineTeacher
from cbtqa.dataset_folder import JOURNAL_NAME, DatasetFolder
from cbtqa.distortions.llm_labeller import REPLY_TOKENS
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.files import sha256_of
from cbtqa.llm.batch import OnProgress, rare_collections
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.journal import Journal, own_path
from cbtqa.llm.runs import EndpointSettings, Run, estimate_run, open_run, refuse_foreign
from cbtqa.llm.second_opinion import ANSWER_CHARS, Exchange, OpenOpinions, opinions_of
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    Manifest,
    describe_settings,
    read_manifest,
    refuse_empty,
)
from cbtqa.psyqa import bundled_sample_path, is_bundled_sample
from cbtqa.records import Rejection
from cbtqa.settings import Resolved

WITHOUT_EFFECT = {"out", "input", "teacher", *EndpointSettings.model_fields} - {
    *("endpoint", "model", "extra", "max_attempts")
}
"""Settings that change neither the answers nor how the folder is written."""


@rare_collections()
def build_dataset(
    resolved: Resolved[BuildSettings],
    *,
    fork: bool = False,
    update: bool = False,
    on_progress: OnProgress | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> FolderResult:
    """Builds a dataset, or continues one that was interrupted.

    Args:
        fork: keep replies of other settings in a journal of their own beside the folder's first;
            the same settings find the same journal again.
        update: write a finished folder again from its paid replies, asking only what is new.
        on_stage: called with each stage's name.

    Raises:
        ConfigError: settings are wrong, or the folder belongs to another run.
        LicenceGateError: the text would leave this machine without acknowledgement.
        IncompleteRunError: stopped early; or more was rejected than `max_rejected` allows.
    """
    build = prepare(resolved)
    folder = build.settings.out
    finished = _finished(folder, build, fork=fork, update=update)
    if finished is not None:
        return FolderResult(folder, finished, was_complete=True)
    journal_path, fingerprint = folder / JOURNAL_NAME, build.fingerprint()
    if fork:
        journal_path = own_path(journal_path, fingerprint)
    is_invented = is_bundled_sample(sha256_of(build.hashed_path))
    shown: dict[str, Any] = {"what": "the questions", "is_invented": is_invented}
    asked = build.teacher.service, build.opinions.services
    with (
        open_run(journal_path, fingerprint, asked[0], further=asked[1], **shown) as run,
        build.opinions.open(**shown) as opened,
    ):
        ask_all_passes(build, run, opened, on_progress, on_stage)
        # only now: a finished folder that is written again stays whole when the asking stops
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        on_stage("checking and writing")
        splits = build.write(folder, run.journal)
        manifest = build.manifest(run, splits, opened)
    on_stage("summing up")
    manifest = complete_folder(folder, manifest)
    _refuse_too_many_rejects(manifest, build.settings)
    return FolderResult(folder, manifest)


def ask_all_passes(
    build: Build,
    run: Run,
    opened: OpenOpinions,
    on_progress: OnProgress | None,
    on_stage: Callable[[str], None] = lambda stage: None,
    chosen: Sequence[Item] | None = None,
) -> None:
    """Asks everything that a build asks, in order; `chosen`: about these questions alone."""
    if opened.screen:
        on_stage(f"grading the questions with {opened.screen.by.service.model}")
        build.grade(run, opened, on_progress, chosen)
    on_stage(f"answering with {build.teacher.system}")
    build.generate(run, on_progress, chosen, opened.runs)
    if opened.guard:
        on_stage(f"reading the answers with {opened.guard.by.service.model}")
        build.guard(run, opened, on_progress, chosen)
    if labels := build.labels:
        on_stage("labelling the questions")
        build.label(run, labels, on_progress, chosen, opened.runs)


def prepare(resolved: Resolved[BuildSettings]) -> Build:
    """The run before its first question: input found, taxonomy loaded; nothing is sent yet."""
    settings = resolved.values
    input_path = settings.input or bundled_sample_path()
    if not input_path.exists():
        raise DataError("no such file", where=str(input_path))
    if input_path.is_dir():
        DatasetFolder.open(input_path)  # its questions are answered again
    taxonomy = load_taxonomy(settings.taxonomy)
    teacher: Teacher = OfflineTeacher(settings, taxonomy)
    if service := settings.service():
        teacher = EndpointTeacher(settings, taxonomy, service)
    opinions = opinions_of(settings, settings.out)
    return Build(resolved, teacher, input_path, tuple(taxonomy.ids), opinions)


def _finished(folder: Path, build: Build, *, fork: bool, update: bool) -> Manifest | None:
    """The manifest of a folder that is this very run's, None when there is work to do."""
    if not (folder / MANIFEST_NAME).exists():
        refuse_foreign(folder / JOURNAL_NAME, "dataset")
        return None
    manifest = read_manifest(folder)
    if update or build.settings.retry or not manifest.counts["n_out"]:
        return None
    if changes := _differences(manifest, build):
        if fork:
            return None
        raise ConfigError(
            f"{folder} holds a finished dataset of other settings:\n" + "\n".join(changes),
            hint="name a new --out, or add --update to write this one again from its paid replies",
        )
    return manifest


def _differences(manifest: Manifest, build: Build) -> list[str]:
    changes = []
    for name, entry in describe_settings(build.resolved).items():
        before = manifest.settings.get(name)
        if before is None and entry.origin == "default":
            continue  # a folder of an earlier version, which had no such setting
        old = before.value if before else None
        if isinstance(entry.value, list) and isinstance(old, str):
            old = [old]  # folders of earlier versions name one endpoint
        if name not in WITHOUT_EFFECT and old != entry.value:
            changes.append(f"  {name}: {old!r} there, {entry.value!r} now")
    if manifest.inputs[0].sha256 != sha256_of(build.hashed_path):
        changes.append(f"  input: {manifest.inputs[0].name} there, {build.input_path.name} now")
    return changes


def _refuse_too_many_rejects(manifest: Manifest, settings: BuildSettings) -> None:
    n_in, n_out = manifest.counts["n_in"], manifest.counts["n_out"]
    reasons, out = manifest.counts["rejected"], settings.out
    refuse_empty(n_out, n_in, "questions has an answer", reasons, kept=out)
    n_dropped = manifest.counts["rejected"].get("crisis_dropped", 0)
    if n_in and (n_in - n_out - n_dropped) / n_in > settings.max_rejected:
        raise IncompleteRunError(
            f"{n_in - n_out} of {n_in} questions were rejected, more than --max-rejected "
            f"{settings.max_rejected:.0%} allows; the outputs are kept in {settings.out}",
            hint=f"read {settings.out / 'rejects.jsonl'}; --retry rejected asks these again, "
            "another prompt or model wants another --out",
        )


def estimate_build(resolved: Resolved[BuildSettings]) -> Estimate:
    """What a build would still send, counted on the real questions and prompts."""
    build = prepare(resolved)
    n_rejected = 0

    def questions() -> Iterator[Item]:
        nonlocal n_rejected
        for entry in build.items():
            if isinstance(entry, Rejection):
                n_rejected += 1
            else:
                yield entry[0]

    parts = estimate_passes(build, questions(), build.questions)
    if len(parts) == 1:
        return parts[0].model_copy(update={"n_left_out": n_rejected})
    return sum_estimates("questions", parts[0].n_items, n_rejected, parts)


def estimate_passes(
    build: Build, items: Iterable[Item], again: Callable[[], Iterable[Item]]
) -> list[Estimate]:
    """What the answers to questions would still take, and what is asked before and after them.

    Args:
        again: gives the same questions, for each further pass.
    """
    teacher = build.teacher if isinstance(build.teacher, EndpointTeacher) else None
    path = build.settings.out / JOURNAL_NAME
    if teacher:
        path = own_path(path, build.fingerprint())
    service = build.teacher.service
    estimate = estimate_run(service, path, items, teacher)
    parts = [estimate.model_copy(update={"name": "answers"})]
    if asked := build.opinions.screen:
        grave = (one for one in again() if one.grade.risk != "explicit")
        parts.insert(0, asked.estimate(map(exchange_of, grave), "questions"))
    if guard := build.opinions.guard:
        parts.append(guard.estimate(_answers(build, path, again()), "answers"))
    if labels := build.labels:
        texts = (text for item in again() if (text := labels.text_of(item)))
        how: dict[str, Any] = {"reply_tokens": REPLY_TOKENS, "is_measured": False}
        second = estimate_run(service, path, texts, labels.task, **how)
        parts.append(second.model_copy(update={"name": "labels of the questions"}))
    return parts if len(parts) > 1 else [estimate]


def _answers(build: Build, path: Path, items: Iterable[Item]) -> Iterator[Exchange]:
    """The answers of the journal, and one of the usual length for each question without."""
    with Journal(path, read_only=True) if path.exists() else nullcontext() as journal:
        for item in items:
            known = build.accepted(journal, [item]) if journal else ()
            yield next((one for *_, one in known), exchange_of(item, "字" * ANSWER_CHARS))
