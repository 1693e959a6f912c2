"""`build_dataset`: opens the gates, continues or refuses what is there, runs both passes.

result = build_dataset(resolve(BuildSettings, flags={"out": Path("runs/demo")}))
result.manifest.counts["n_out"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from cbtqa.dataset.build import Build
from cbtqa.dataset.card import complete_folder
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import EndpointTeacher, OnProgress, Teacher
from cbtqa.dataset.template.teacher import OfflineTeacher
from cbtqa.dataset_folder import JOURNAL_NAME
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.files import sha256_of
from cbtqa.llm.batch import rare_collections
from cbtqa.llm.chat import ChatRequest
from cbtqa.llm.cost import REPLY_TOKENS, plan_run
from cbtqa.llm.endpoint import Endpoint, pass_disclosure_gate
from cbtqa.llm.journal import Journal, fork_path
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    Manifest,
    describe_settings,
    read_manifest,
)
from cbtqa.psyqa import bundled_sample_path, is_bundled_sample
from cbtqa.records import Record, Rejection
from cbtqa.settings import Resolved

WITHOUT_EFFECT = {
    *("out", "input", "in_flight", "rpm", "tpm", "timeout_s", "transport", "budget"),
    *("budget_tokens", "price_in", "price_out", "acknowledge_disclosure", "teacher"),
    *("cluster", "cluster_actors"),
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
        on_stage: told what is being done now, in a few words.

    Raises:
        ConfigError: settings are wrong, or the folder belongs to another run.
        DataError: the input is not what it should be.
        LicenceGateError: the text would leave this machine without acknowledgement.
        IncompleteRunError: stopped early; or more was rejected than `max_rejected` allows.
        EndpointError: the endpoint refuses every request.
    """
    build = prepare(resolved)
    folder = build.settings.out
    finished = _finished(folder, build, fork=fork, update=update)
    if finished is not None:
        return FolderResult(folder, finished, was_complete=True)
    folder.mkdir(parents=True, exist_ok=True)
    journal_path, fingerprint = folder / JOURNAL_NAME, build.teacher.fingerprint()
    if fork:
        journal_path = fork_path(journal_path, fingerprint)
    with Journal(journal_path, fingerprint) as journal:
        on_stage(f"answering with {build.teacher.system}")
        build.generate(journal, on_progress)
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        on_stage("checking and writing")
        splits = build.write(folder, journal)
        manifest = build.manifest(journal, splits)
    on_stage("summing up")
    manifest = complete_folder(folder, manifest)
    _refuse_too_many_rejects(manifest, build.settings)
    return FolderResult(folder, manifest)


def prepare(resolved: Resolved[BuildSettings]) -> Build:
    """The run before its first question: input found, taxonomy loaded, gates passed."""
    settings = resolved.values
    input_path = settings.input or bundled_sample_path()
    if not input_path.exists():
        raise DataError("no such file", where=str(input_path))
    taxonomy = load_taxonomy(settings.taxonomy)
    acknowledgements: dict[str, str] = {}
    teacher: Teacher
    if settings.endpoint is None or settings.model is None:
        teacher = OfflineTeacher(settings, taxonomy)
    else:
        endpoint = Endpoint.parse(settings.endpoint, settings.model, transport=settings.transport)
        is_ours = is_bundled_sample(sha256_of(input_path))
        acknowledgements = pass_disclosure_gate(
            endpoint,
            "the questions",
            is_acknowledged=settings.acknowledge_disclosure,
            is_invented=is_ours,
        )
        teacher = EndpointTeacher(settings, taxonomy, endpoint)
    return Build(
        resolved, teacher, input_path, tuple(taxonomy.ids), acknowledgements=acknowledgements
    )


def _finished(folder: Path, build: Build, *, fork: bool, update: bool) -> Manifest | None:
    """The manifest of a folder that is this very run's, None when there is work to do."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file")
    if not (folder / MANIFEST_NAME).exists():
        foreign = [path for path in folder.glob("*") if not path.name.startswith(".")]
        if foreign and not (folder / JOURNAL_NAME).exists():
            raise ConfigError(
                f"--out: {folder} is not empty and is no dataset", hint="name a new folder"
            )
        return None
    if update:
        return None
    manifest = read_manifest(folder)
    changes = _differences(manifest, build)
    if changes and fork:
        return None
    if changes:
        raise ConfigError(
            f"{folder} holds a finished dataset of other settings:\n" + "\n".join(changes),
            hint="name a new --out, or add --update to write this one again from its paid replies",
        )
    return manifest


def _differences(manifest: Manifest, build: Build) -> list[str]:
    changes = []
    given = describe_settings(build.resolved)
    for name, entry in given.items():
        before = manifest.settings.get(name)
        old = before.value if before else None
        if name not in WITHOUT_EFFECT and old != entry.value:
            changes.append(f"  {name}: {old!r} there, {entry.value!r} now")
    if manifest.inputs[0].sha256 != sha256_of(build.input_path):
        changes.append(f"  input: {manifest.inputs[0].name} there, {build.input_path.name} now")
    return changes


def _refuse_too_many_rejects(manifest: Manifest, settings: BuildSettings) -> None:
    n_in, n_out = manifest.counts["n_in"], manifest.counts["n_out"]
    n_dropped = manifest.counts["rejected"].get("crisis_dropped", 0)
    if n_in and (n_in - n_out - n_dropped) / n_in > settings.max_rejected:
        raise IncompleteRunError(
            f"{n_in - n_out} of {n_in} questions were rejected, more than --max-rejected "
            f"{settings.max_rejected:.0%} allows; the outputs are kept in {settings.out}",
            hint=f"read {settings.out / 'rejects.jsonl'}, then change the prompt or the model",
        )


# --- estimate ------------------------------------------------------------------------------------
# What a build would cost, counted on the real questions and prompts; nothing is sent.


class BuildEstimate(Record):
    """Numbers of a dry run, if every question were answered at its first attempt."""

    n_questions: int = 0
    n_rejected: int = 0
    """Rows turned away before anything would be asked."""
    n_done: int = 0
    """Answered in the journal already."""
    n_requests: int = 0
    prompt_tokens: int = 0
    counted_by: str = ""
    """How prompt tokens were counted."""
    completion_tokens: int = 0
    length_from: str = ""
    """Where the length of an answer comes from."""
    cost: float | None = None
    """None when nothing is paid or no price is known."""
    currency: str | None = None
    price_as_of: str | None = None
    seconds: float | None = None
    """At the limits given; None for the template teacher."""
    bound_by: str = ""
    """Which limit decides the time."""


def estimate_build(resolved: Resolved[BuildSettings]) -> BuildEstimate:
    """Counts requests, tokens, price and time of a build.

    Raises:
        CbtqaError: the errors of `run.prepare`.
    """
    build = prepare(resolved)
    settings, teacher = build.settings, build.teacher
    counts = {"n_questions": 0, "n_rejected": 0, "n_done": 0}
    path = settings.out / JOURNAL_NAME
    with Journal(path, read_only=True) if path.exists() else nullcontext() as journal:
        requests = _requests(build, journal, counts)
        if not isinstance(teacher, EndpointTeacher):
            for _ in requests:
                pass
            return BuildEstimate(**counts)
        length, length_from = _answer_length(journal)
        plan = plan_run(
            requests,
            teacher.system,
            in_flight=settings.in_flight,
            rpm=settings.rpm,
            tpm=settings.tpm,
            price=teacher.price,
            reply_tokens=length,
        )
    return BuildEstimate(
        **counts,
        n_requests=plan.n_requests,
        prompt_tokens=plan.prompt_tokens,
        counted_by=plan.counted_by,
        completion_tokens=plan.completion_tokens,
        length_from=length_from,
        cost=plan.cost,
        currency=plan.price.currency if plan.price else None,
        price_as_of=plan.price.as_of or None if plan.price else None,
        seconds=plan.seconds,
        bound_by=plan.bound_by,
    )


def _requests(
    build: Build, journal: Journal | None, counts: dict[str, int]
) -> Iterator[ChatRequest]:
    """The requests that are still to be sent; keeps the counts on the way."""
    for entry in build.items():
        if isinstance(entry, Rejection):
            counts["n_rejected"] += 1
            continue
        item = entry[0]
        counts["n_questions"] += 1
        if journal is not None and journal.standings([item.key]):
            counts["n_done"] += 1
        elif isinstance(build.teacher, EndpointTeacher):
            yield build.teacher.request(item)


def _answer_length(journal: Journal | None) -> tuple[int, str]:
    """Mean completion tokens of an answer, and where the number comes from."""
    totals = journal.totals() if journal else None
    if totals and totals.n_replies and totals.usage.completion_tokens:
        mean = totals.usage.completion_tokens / totals.n_replies
        return round(mean), f"mean of {totals.n_replies:,} replies in the journal"
    return REPLY_TOKENS, f"{REPLY_TOKENS} an answer, assumed"
