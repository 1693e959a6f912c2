"""`cbtqa simulate profiles`: patients drawn or read, told by a model where one is named, written.

make_patients(PatientSettings(source="act", n=150, out=Path("patients.yaml")))
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.files import write_jsonl, write_text
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import Rejection
from cbtqa.settings import Settings
from cbtqa.simulation.profiles import Profile, draw_profiles, read_profiles, ready_profiles
from cbtqa.simulation.stories import tell_stories
from cbtqa.simulation.study import Player, refuse_secret_in


class PatientSettings(Settings):
    """Flags of `cbtqa simulate profiles`."""

    source: str = Field(
        "cbt",
        description="Attribute table to draw from: cbt, act or a YAML file of `attributes:`; or "
        "test, archetypes, or a YAML file of `profiles:`, to list and check them.",
    )
    n: int = Field(10, ge=1, description="Patients to draw.")
    seed: int = Field(0, description="Seed of the draw.")
    out: Path | None = Field(
        None, description="File to write: .yaml (to edit) or .jsonl. Default: write nothing."
    )
    endpoint: str | None = Field(
        None, description="URL or preset of a model that writes the stories; rules do by default."
    )
    model: str | None = Field(None, description="Model name at the endpoint.")
    temperature: float | None = Field(0.7, ge=0, le=2, description="Of the stories.")
    max_tokens: int = Field(4096, ge=64, description="Token limit of one story.")
    acknowledge_disclosure: bool = Field(
        False,
        description="I may pass the patients on to the operator of a non-local endpoint; recorded "
        "in the journal.",
    )
    in_flight: int = Field(64, ge=1, description="Most requests at a time.")

    @model_validator(mode="after")
    def _fits_together(self) -> PatientSettings:
        if self.endpoint and not self.model:
            raise ValueError("--endpoint wants --model")
        if self.endpoint and self.out is None:
            raise ValueError("--endpoint wants --out: stories cost money")
        if self.endpoint:
            refuse_secret_in(self.endpoint)
        return self


def make_patients(
    settings: PatientSettings, *, on_progress: Callable[[Progress], None] | None = None
) -> tuple[Profile, ...]:
    """Draws or reads patients and writes them where `out` says.

    Raises:
        ConfigError, DataError: the table or the file is not what it should be.
        LicenceGateError: patients would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: some stories are missing; the others are written.
    """
    profiles = _find(settings)
    rejections: tuple[Rejection, ...] = ()
    if settings.endpoint is not None and settings.out is not None:
        player = Player(
            endpoint=settings.endpoint,
            model=settings.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        journal = settings.out.with_suffix(".sqlite")
        limits = Limits(in_flight=settings.in_flight)
        profiles, rejections = tell_stories(
            profiles,
            player,
            journal,
            limits,
            is_acknowledged=settings.acknowledge_disclosure,
            on_progress=on_progress,
        )
    if settings.out is not None:
        write_profiles(settings.out, profiles)
    if rejections:
        first = rejections[0]
        raise IncompleteRunError(
            f"{len(rejections)} patients got no story, such as {first.item_id}: "
            f"{first.reason.value}, {first.detail}",
            hint=f"the others are in {settings.out}; give the command again to try these",
        )
    return profiles


def _find(settings: PatientSettings) -> tuple[Profile, ...]:
    if settings.source in ("test", "archetypes"):
        return ready_profiles(settings.source)
    path = Path(settings.source)
    is_profiles = path.suffix == ".jsonl" or (
        path.suffix in (".yaml", ".yml")
        and path.is_file()
        and re.search(r"^profiles:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    )
    if is_profiles and settings.endpoint:
        raise ConfigError("written profiles have their stories", hint="draw from a table instead")
    if is_profiles:
        return read_profiles(path)
    return draw_profiles(settings.source, settings.n, settings.seed)


def write_profiles(path: Path, profiles: tuple[Profile, ...]) -> None:
    """Writes profiles as YAML to be edited, or as JSON lines."""
    if path.suffix not in (".yaml", ".yml"):
        write_jsonl(path, profiles)
        return
    rows = [profile.model_dump(mode="json", exclude_defaults=True) for profile in profiles]
    write_text(path, yaml.safe_dump({"profiles": rows}, sort_keys=False, allow_unicode=True))
