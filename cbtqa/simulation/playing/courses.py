"""Courses: one arm with one patient in one repeat, for one session or several in order.

    courses = plan_courses(study, profiles)       # in the order in which sessions are written
    refuse_other_settings(journal, courses, folder, update=False)

A folder may grow by arms, patients, repeats and sessions; a course that was begun with other
settings is refused, so that nothing paid for is mixed up or quietly paid for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, DataError
from cbtqa.llm.chat import Fault
from cbtqa.llm.journal import Journal
from cbtqa.records import Provenance, Reason, Session, StopReason
from cbtqa.simulation.playing.messages import Casting
from cbtqa.simulation.playing.session import session_seed
from cbtqa.simulation.profiles import Profile
from cbtqa.simulation.sessions import StudyFolder, session_id
from cbtqa.simulation.study import Arm, StudySettings


@dataclass(frozen=True)
class Course:
    """One arm, one patient, one repeat."""

    study: StudySettings
    arm: Arm
    profile: Profile
    replicate: int

    @property
    def name(self) -> str:
        """`arm/patient/repeat`."""
        return f"{self.arm.name}/{self.profile.id}/r{self.replicate}"

    def casting(self, number: int = 1) -> Casting:
        """The views of one of its sessions, before anything is carried over."""
        return Casting(self.study, self.arm, self.profile, number)


def plan_courses(study: StudySettings, profiles: Sequence[Profile]) -> list[Course]:
    """Every course of a study, in the order in which sessions are written."""
    return [
        Course(study, arm, profile, replicate)
        for arm in study.arms
        for profile in profiles
        for replicate in range(1, study.replicates + 1)
    ]


def not_played(course: Course, first: int, fault: Fault) -> list[Session]:
    """The rest of a course that broke off, from session `first`: no turns, and the reason."""
    reason: StopReason = "endpoint" if fault.reason is Reason.ENDPOINT else "no_answer"
    return [
        Session(
            id=session_id(course.arm.name, course.profile.id, number, course.replicate),
            arm=course.arm.name,
            profile_id=course.profile.id,
            number=number,
            replicate=course.replicate,
            phase=course.casting(number).phase,
            turns=(),
            stop_reason=reason,
            stop_detail=f"not played: {fault.detail}",
            seed=session_seed(course.casting(number), course.replicate),
            provenance=Provenance(model=course.arm.therapist.name, version=cbtqa.__version__),
        )
        for number in range(first, course.study.sessions + 1)
    ]


def refuse_other_settings(
    journal: Journal, courses: Sequence[Course], folder: StudyFolder, *, update: bool
) -> None:
    """Compares every course with the turns that the journal holds of it.

    Raises:
        ConfigError: some were played with other settings, and `update` is not set.
    """
    known: dict[str, set[str]] = {}
    for key in journal.done_keys():
        session, fingerprint, *_ = key.split("|")
        known.setdefault(_course_of(session), set()).add(fingerprint)
    given = {course.name: course.casting().fingerprint for course in courses}
    changed = [name for name, mark in given.items() if mark not in known.get(name, {mark})]
    if changed and not update:
        raise ConfigError(
            "\n".join(
                [
                    f"{folder.path} holds {len(changed)} of these courses with other settings, "
                    f"such as {changed[0]}:",
                    *_differences(folder, courses[0].study),
                ]
            ),
            hint="name a new --out, or add --update to play them anew",
        )


def _course_of(session: str) -> str:
    """`arm/patient/s3/r1` belongs to the course `arm/patient/r1`."""
    arm, patient, _, replicate = session.split("/")
    return f"{arm}/{patient}/{replicate}"


def _differences(folder: StudyFolder, study: StudySettings) -> list[str]:
    """The settings that differ from those in the folder, one a line."""
    try:
        before = folder.study().model_dump(mode="json")
    except DataError:
        return []
    after = study.model_dump(mode="json")
    was, now_is = _flat(before), _flat(after)
    names = [name for name in was | now_is if was.get(name) != now_is.get(name)]
    lines = [f"  {name}: was {was.get(name)!r}, is {now_is.get(name)!r}" for name in names]
    return lines or ["  a prompt, a sentence of the messages or a profile changed"]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = {
            (one.get("name", n) if isinstance(one, dict) else n): one for n, one in enumerate(value)
        }.items()
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, one in inner:
        found |= _flat(one, f"{prefix}.{key}" if prefix else str(key))
    return found
