"""`cbtqa simulate lint`: the check before any score is believed.

    report = lint(Path("recipes/tahir-act-as-published.yaml"))
    [finding.code for finding in report.findings]

Takes a study file (what is declared), a study folder (declared and measured), an export (leaked
splits), or transcripts in a file (speakers, lengths, crisis turns).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cbtqa.errors import DataError
from cbtqa.files import read_jsonl, read_rows
from cbtqa.manifest import MANIFEST_NAME
from cbtqa.records import Record, Session
from cbtqa.simulation.audit import ArmAudit, Finding, audit_sessions, compare_arms
from cbtqa.simulation.profiles import choose_profiles
from cbtqa.simulation.sessions import STUDY_NAME, StudyFolder, read_transcripts
from cbtqa.simulation.study import StudySettings, load_study
from cbtqa.splits import SPLITS

KINDS = ("sft", "orpo", "messages")


class LintReport(Record):
    """Everything found in one place."""

    kind: Literal["study file", "study", "export", "transcripts"]
    factor: tuple[str, ...] = ()
    """What the arms are meant to differ in."""
    arms: dict[str, ArmAudit] = Field(default_factory=dict)
    findings: tuple[Finding, ...]
    counts: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """True when nothing worse than a note was found."""
        return all(finding.severity == "note" for finding in self.findings)


def lint(path: Path, *, against: Path | None = None) -> LintReport:
    """Checks a study file, a study folder, an export or transcripts.

    Args:
        against: for an export: the study in which the tuned model will play, whose patients must
            not be among those it learned from.

    Raises:
        DataError: nothing of this kind there, or it is damaged.
        ConfigError: a study file with wrong settings.
    """
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    if path.is_dir():
        if (path / STUDY_NAME).exists():
            return _lint_folder(StudyFolder(path))
        if any((path / kind).is_dir() for kind in KINDS):
            return _lint_export(path, against)
        raise DataError(f"holds neither {STUDY_NAME} nor training rows", where=str(path))
    if path.suffix in (".yaml", ".yml"):
        study = load_study(path)
        return _report("study file", study, [])
    sessions = list(read_jsonl(path, Session)) if _is_ours(path) else list(read_transcripts(path))
    audit = audit_sessions(sessions, None)
    return LintReport(kind="transcripts", arms=audit.arms, findings=audit.findings)


def _is_ours(path: Path) -> bool:
    """Whether the first row is a session of cbtqa; then one-sided sessions are findings too."""
    first = next(read_rows(path), None)
    return first is not None and "stop_reason" in first[1]


def _lint_folder(folder: StudyFolder) -> LintReport:
    return _report("study", folder.study(), list(folder.read_sessions()))


def _report(
    kind: Literal["study file", "study"], study: StudySettings, sessions: list[Session]
) -> LintReport:
    audit = audit_sessions(sessions, study)
    findings = (*compare_arms(study), *audit.findings)
    return LintReport(kind=kind, factor=study.factor, arms=audit.arms, findings=findings)


# --- exports -------------------------------------------------------------------------------------


def _lint_export(path: Path, against: Path | None) -> LintReport:
    if not (path / MANIFEST_NAME).exists():
        raise DataError("holds rows but no manifest: the export did not finish", where=str(path))
    findings: list[Finding] = []
    counts: dict[str, Any] = {}
    learned: set[str] = set()
    for kind in KINDS:
        if not (path / kind).is_dir():
            continue
        patients = {split: _patients(path / kind / f"{split}.meta.jsonl") for split in SPLITS}
        texts = {split: _texts(path / kind / f"{split}.jsonl") for split in SPLITS}
        counts[kind] = {split: texts[split].total() for split in SPLITS}
        learned |= patients["train"]
        findings += _leaks(kind, "patients", {split: set(patients[split]) for split in SPLITS})
        findings += _leaks(kind, "answers", {split: set(texts[split]) for split in SPLITS})
    if against is not None:
        study = load_study(against)
        played = {one.id for one in choose_profiles(study.patients, study.seed)}
        both = sorted(learned & played)
        if both:
            message = (
                f"{len(both)} patients of {study.id} stand in the training rows: {both[0]} ..."
            )
            findings.append(
                Finding(code="leak_study", severity="error", subject=both[0], message=message)
            )
    return LintReport(kind="export", findings=tuple(findings), counts=counts)


def _patients(path: Path) -> set[str]:
    return {str(row["profile_id"]) for _, row in read_rows(path)}


def _texts(path: Path) -> Counter[str]:
    """Whole conversations: prompt and answer together, so that a greeting is no leak."""
    return Counter(repr(sorted(row.items())) for _, row in read_rows(path))


def _leaks(kind: str, what: str, found: dict[str, set[str]]) -> Iterator[Finding]:
    for held_out in ("validation", "test"):
        shared = sorted(found["train"] & found[held_out])
        if shared:
            shown = shared[0] if what == "patients" else "the same conversation"
            yield Finding(
                code=f"leak_{what}",
                severity="error",
                subject=f"{kind}/{held_out}",
                message=f"{len(shared)} {what} of {kind}/{held_out} are in train too: {shown}",
            )
