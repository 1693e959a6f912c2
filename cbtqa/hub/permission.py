"""The gate before question text: an explicit flag and a file that permits it, written down.

PsyQA's agreement forbids passing its text on; the period printed in it ended on 2026-05-18.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.settings import DatasetSettings
from cbtqa.manifest import Manifest, describe_file
from cbtqa.psyqa import is_bundled_sample

KEY = "source_text"
"""Under this key the manifest's acknowledgements keep the permission."""


@dataclass(frozen=True)
class Permission:
    """Whether question text is published, and on what ground."""

    has_source_text: bool
    acknowledgement: str | None = None
    """Sentence for the manifest; None when nothing needs to be permitted."""
    remark: str | None = None
    """What the person should know before going on."""


def is_invented(manifest: Manifest) -> bool:
    """True when all questions are the sample that comes with cbtqa: nobody's text."""
    return bool(manifest.inputs) and all(is_bundled_sample(e.sha256) for e in manifest.inputs)


def pass_permission_gate(settings: DatasetSettings, manifest: Manifest) -> Permission:
    """Decides whether question text goes out.

    Raises:
        PublishRefusedError: question text is asked for without a permission, with an empty one, or
            with one that has run out.
    """
    if not settings.include_source_text:
        return Permission(False)
    if settings.permission is None:
        if is_invented(manifest):
            return Permission(True, remark="the questions are the invented sample of cbtqa")
        raise PublishRefusedError(
            "--include-source-text wants --permission FILE: PsyQA's user agreement forbids copying "
            "its questions onward, and other sources have owners too",
            hint="publish without the text (the default): readers who have the file put it back "
            "with cbtqa join",
        )
    if not settings.permission.is_file() or settings.permission.stat().st_size == 0:
        raise PublishRefusedError(
            f"{settings.permission} is no permission: no such file, or an empty one",
            hint="name the file that permits publishing the questions",
        )
    until = settings.permission_until
    if until is not None and datetime.date.fromisoformat(until) < datetime.date.today():
        raise PublishRefusedError(
            f"the permission ended on {until}", hint="renew it, or publish without the text"
        )
    return Permission(True, _sentence(settings, manifest), _remark(until))


def _sentence(settings: DatasetSettings, manifest: Manifest) -> str:
    """The record of the permission; the day of the first time is kept, so that a run stays equal
    to itself."""
    assert settings.permission is not None
    entry = describe_file(settings.permission)
    until = f", valid until {settings.permission_until}" if settings.permission_until else ""
    ground = (
        f"question text published to {settings.to} under the permission {entry.name} "
        f"(SHA-256 {entry.sha256}{until})"
    )
    before = manifest.acknowledgements.get(KEY, "")
    if before.startswith(ground):
        return before
    return f"{ground}; acknowledged {datetime.date.today()}"


def _remark(until: str | None) -> str | None:
    if until is not None:
        return None
    return (
        "the end of the permission is not stated (--permission-until); the period printed in "
        "PsyQA's agreement ended on 2026-05-18"
    )
