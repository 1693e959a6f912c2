"""`cbtqa simulate profiles`: patients drawn or read, their stories from a model where one is named.

make_patients(PatientSettings(source="act", n=150, out=Path("patients.yaml")))
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.files import read_text, write_jsonl, write_text
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import ChatRequest, Fault, Reply, request_again
from cbtqa.llm.cost import Estimate
from cbtqa.llm.runs import EndpointSettings, Service, estimate_run, open_run
from cbtqa.llm.structured import parse_object
from cbtqa.paths import refuse_existing
from cbtqa.prompts import load_prompt
from cbtqa.records import Reason
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.messages import filled, object_schema, wording
from cbtqa.simulation.playing.session import provenance_of
from cbtqa.simulation.profiles import (
    AttributeTable,
    Profile,
    draw_profiles,
    load_table,
    read_profiles,
    ready_profiles,
)
from cbtqa.simulation.study import Player


class PatientSettings(EndpointSettings):
    """Flags of `cbtqa simulate profiles`."""

    source: str = "cbt"
    """Attribute table to draw from: cbt, act or a YAML file of `attributes:`; or test, archetypes,
    or a YAML file of `profiles:`, to list and check them."""
    n: int = Field(10, ge=1)
    """Patients to draw."""
    seed: int = 0
    """Seed of the draw."""
    out: Path | None = None
    """File to write: .yaml (to edit) or .jsonl. Default: write nothing."""
    overwrite: bool = False
    """Replace the file of --out: what was edited in it is lost."""
    temperature: float | None = Field(0.7, ge=0, le=2)
    """Of the stories."""
    max_tokens: int = Field(4096, ge=64)
    """Token limit of one story."""

    @model_validator(mode="after")
    def _fits_together(self) -> PatientSettings:
        if self.endpoint and self.out is None:
            raise ValueError("--endpoint wants --out: stories cost money")
        return self


def make_patients(
    settings: PatientSettings, *, on_progress: OnProgress | None = None
) -> tuple[Profile, ...]:
    """Draws or reads patients and writes them where `out` says.

    Raises:
        ConfigError, DataError: the table or the file is not what it should be.
        LicenceGateError: patients would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: some stories are missing; the others are written.
    """
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite or bool(settings.retry))
    profiles = _find(settings)
    faults: dict[str, Fault] = {}
    service = settings.service()
    if service is not None and settings.out is not None:
        profiles, faults = write_stories(profiles, settings, service, on_progress)
    # an empty file would stand in the way of the same command
    out = settings.out if profiles or not faults else None
    if out is not None and out.suffix in (".yaml", ".yml"):
        rows = [profile.model_dump(mode="json", exclude_defaults=True) for profile in profiles]
        text = yaml.safe_dump({"profiles": rows}, sort_keys=False, allow_unicode=True)
        write_text(out, text)
    elif out is not None:
        write_jsonl(out, profiles)
    if faults:
        first, fault = next(iter(faults.items()))
        raise IncompleteRunError(
            f"{len(faults)} patients got no story, such as {first}: "
            f"{fault.reason.value}, {fault.detail}",
            hint=f"the others are in {out}; the same command with --overwrite tries these"
            if out
            else "nothing was written; --retry rejected asks again",
        )
    return profiles


def estimate_stories(settings: PatientSettings) -> Estimate:
    """What a model would still be sent for the stories; drawing asks nobody.

    Raises:
        ConfigError, DataError: as `make_patients`.
    """
    profiles, service = _find(settings), settings.service()
    if service is None:
        return Estimate(items="patients", n_items=len(profiles))
    task, path = StoryTask(settings), _journal_path(settings)
    return estimate_run(service, path, profiles, task, name="patients", reply_tokens=REPLY_TOKENS)


def _find(settings: PatientSettings) -> tuple[Profile, ...]:
    path, is_ready = Path(settings.source), settings.source in ("test", "archetypes")
    is_file = path.suffix == ".jsonl" or (
        path.suffix in (".yaml", ".yml")
        and path.is_file()
        and re.search(r"^profiles:", read_text(path), re.MULTILINE) is not None
    )
    if (is_ready or is_file) and settings.endpoint:
        raise ConfigError("written profiles have their stories", hint="draw from a table instead")
    if is_ready:
        return ready_profiles(settings.source)
    return (
        read_profiles(path)
        if is_file
        else draw_profiles(settings.source, settings.n, settings.seed)
    )


FEWEST_WORDS, MOST_WORDS = 3, 150
"""Of one field: one to three sentences; assumed."""
MOST_STORY_WORDS = 450
"""Of all fields together: the story stands in every message to the patient's player."""
UNTOLD = ("risk", "held_back")
"""Parts that the prompt adds to those of the table: only a model can tell them by patient."""
REPLY_TOKENS = 600
"""Of one story: some 400 words; assumed for the dry run."""


class StoryTask:
    """The engine's task: the model fills one field for each thing that a story has to cover."""

    def __init__(self, settings: PatientSettings) -> None:
        self.player = Player(
            endpoint=settings.endpoint,
            model=settings.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            extra=settings.extra,
        )
        self.prompt = load_prompt("profile_story")

    def key(self, item: Profile) -> str:
        """Id and attributes: a profile drawn otherwise is another item."""
        drawn = json.dumps([item.attributes, item.archetype, item.name], sort_keys=True)
        return f"{item.id}|{hashlib.sha256(drawn.encode()).hexdigest()[:8]}"

    def request(self, item: Profile) -> ChatRequest:
        """Attributes in, one field for each content out."""
        table = load_table(item.table or "")
        keys = story_parts(table)
        messages = self.prompt.render(
            contents="\n".join(f"- {key}: {one.asks}" for key, one in table.contents.items()),
            most_words=str(MOST_STORY_WORDS),
            shape=json.dumps(dict.fromkeys(keys, "...")),
            name=item.name,
            attributes="\n".join(
                f"- {table.attributes[key].label}: {', '.join(values)}"
                for key, values in item.attributes.items()
            ),
            manner=item.behaviour or "as fits the attributes",
        )
        sampling = self.player.sampling(seed_of("story", item.id))
        fields = {key: {"type": "string"} for key in keys}
        return ChatRequest(messages, object_schema(**fields), "story", sampling)

    def check(self, item: Profile, reply: Reply) -> Fault | None:
        """The first field that is missing, too short or too long."""
        found = read_story(reply, load_table(item.table or ""))
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: Profile, reply: Reply, fault: Fault) -> ChatRequest:
        first = self.request(item)
        texts = wording()["again"]
        complaint = filled(texts["not_json"], detail=fault.detail[:200] or fault.reason.value)
        return request_again(first, reply, fault, complaint)


def story_parts(table: AttributeTable) -> tuple[str, ...]:
    """Fields of a story that a model tells."""
    return (*table.contents, *UNTOLD)


def read_story(reply: Reply, table: AttributeTable) -> str | Fault:
    """The narrative in a reply: its fields in the table's order, one paragraph each."""
    keys = story_parts(table)
    found = parse_object(reply.text, lambda value: set(keys) <= set(value))
    if isinstance(found, Fault):
        return found
    paragraphs = []
    for key in keys:
        text = found.get(key)
        n_words = len(text.split()) if isinstance(text, str) else 0
        if n_words < FEWEST_WORDS:
            return Fault(Reason.MISSING_STEP, f"{key} has {n_words} words")
        if n_words > MOST_WORDS:
            return Fault(Reason.STEP_TOO_LONG, f"{key} has {n_words} words, at most {MOST_WORDS}")
        paragraphs.append(str(text).strip())
    n_words = len(" ".join(paragraphs).split())
    if n_words > MOST_STORY_WORDS:
        return Fault(
            Reason.STEP_TOO_LONG, f"the story has {n_words} words, at most {MOST_STORY_WORDS}"
        )
    return "\n".join(paragraphs)


def write_stories(
    profiles: Sequence[Profile],
    settings: PatientSettings,
    service: Service,
    on_progress: OnProgress | None,
) -> tuple[tuple[Profile, ...], dict[str, Fault]]:
    """The profiles with their stories, and by id why others got none."""
    task = StoryTask(settings)
    fingerprint = {
        "model": service.model,
        "endpoint_host": service.host,
        "prompt_sha256": task.prompt.sha256,
        "sampling": json.dumps(task.player.sampling(None).described(), sort_keys=True),
    }
    written: list[Profile] = []
    faults: dict[str, Fault] = {}
    with open_run(_journal_path(settings), fingerprint, service, what="the patients") as run:
        run.ask(profiles, task, n_total=len(profiles), on_progress=on_progress)
        outcomes = run.journal.outcomes(map(task.key, profiles))
        for profile, (_, outcome) in zip(profiles, outcomes, strict=True):
            if outcome is None or not outcome.is_accepted or outcome.reply is None:
                fault = outcome.fault if outcome else None
                faults[profile.id] = fault or Fault(Reason.EMPTY, "no reply")
                continue
            seed = seed_of("story", profile.id)
            provenance = provenance_of(task.player, task.prompt, seed, [outcome])
            story = read_story(outcome.reply, load_table(profile.table or ""))
            update = {"narrative": story, "provenance": provenance}
            written.append(profile.model_copy(update=update))
    return tuple(written), faults


def _journal_path(settings: PatientSettings) -> Path:
    assert settings.out is not None, "an endpoint wants --out"
    return settings.out.with_suffix(".sqlite")
