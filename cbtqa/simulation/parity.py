"""Arm parity as declared: everything in which arms differ besides what they are meant to differ in.

    for finding in compare_arms(study): finding.code, finding.message

A difference between arms that the study does not name as its factor is a confound: the scores
cannot tell it from the factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cbtqa.errors import PromptError
from cbtqa.prompts import load_prompt
from cbtqa.records import NonEmptyText, Record
from cbtqa.simulation.study import Arm, StudySettings

Severity = Literal["error", "confound", "note"]
NOT_COMPARED = ("name", "levels", "observed")
"""Names, factor levels, and what is measured rather than set."""
UNHEARD = ("price_in", "price_out", "key_env")
"""Settings that change no word."""


class Finding(Record):
    """One thing that a reader of the study has to know."""

    code: NonEmptyText
    """Stable name, such as `arms_differ` or `early_stops`."""
    severity: Severity
    """`error`: data that must not be used so. `confound`: arms differ beside the factor."""
    subject: NonEmptyText
    """The field, session, arm or file that it is about."""
    message: NonEmptyText


def compare_arms(study: StudySettings) -> list[Finding]:
    """Confounds in the declaration: differing fields, training unlike serving, unshared events."""
    found = [*_differing_fields(study), *_unlike_training(study)]
    if study.events.probability > 0 and study.events.drawn == "per_arm":
        found.append(
            Finding(
                code="events_per_arm",
                severity="confound",
                subject="events.drawn",
                message="mid-session events are drawn anew for every arm: patients meet other "
                "events in other arms",
            )
        )
    return found


def _differing_fields(study: StudySettings) -> list[Finding]:
    flat = {arm.name: _flat(arm, study) for arm in study.arms}
    names = sorted({name for fields in flat.values() for name in fields})
    found = []
    for name in names:
        if _is_named(name, study.factor):
            continue
        values = {arm: fields[name] for arm, fields in flat.items() if name in fields}
        if name.startswith("training."):
            # an untuned arm has no teacher: only tuned arms are compared
            tuned = [arm.name for arm in study.arms if arm.training is not None]
            values = {arm: flat[arm].get(name) for arm in tuned}
        else:
            values = {arm: fields.get(name) for arm, fields in flat.items()}
        if len(set(map(repr, values.values()))) > 1:
            found.append(
                Finding(
                    code="arms_differ",
                    severity="confound",
                    subject=name,
                    message=f"{name} differs: {_grouped(values)}",
                )
            )
    return found


def _is_named(name: str, factor: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in (*factor, *NOT_COMPARED))


def _flat(arm: Arm, study: StudySettings) -> dict[str, Any]:
    """Every setting of an arm by dotted name, the prompt as file and hash."""
    plain = arm.model_dump(mode="json", exclude_none=True)
    fields = _flattened(plain)
    name = study.therapist_prompt(arm)
    fields["prompt"] = f"{name} {_hash_of(name)}".strip()
    return {key: value for key, value in fields.items() if not key.endswith(UNHEARD)}


def _flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = f"{prefix}{key}"
        found |= _flattened(one, f"{name}.") if isinstance(one, dict) else {name: one}
    return found


def _hash_of(prompt: str) -> str:
    """First digits of a prompt's hash; empty for a prompt that is not at hand."""
    try:
        return load_prompt(prompt).sha256[:8]
    except PromptError:
        return ""


def _grouped(values: Mapping[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for arm, value in values.items():
        groups.setdefault("not set" if value in (None, []) else str(value), []).append(arm)
    return "; ".join(f"{value} ({', '.join(arms)})" for value, arms in groups.items())


def _unlike_training(study: StudySettings) -> list[Finding]:
    """Arms that are played otherwise than their model was trained."""
    found = []
    for arm in study.arms:
        if arm.training is None:
            continue
        served = study.therapist_prompt(arm)
        learned = arm.training.prompt
        if learned is not None and learned != served:
            found.append(
                Finding(
                    code="train_serve_prompt",
                    severity="confound",
                    subject=arm.name,
                    message=f"{arm.name} was trained on prompt {learned}, is played with {served}",
                )
            )
        if arm.training.history is not None and arm.training.history != arm.history:
            found.append(
                Finding(
                    code="train_serve_history",
                    severity="confound",
                    subject=arm.name,
                    message=f"{arm.name} was trained on {_words(arm.training.history)} as history, "
                    f"is played with {_words(arm.history)}",
                )
            )
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")
