"""`cbtqa simulate profiles`: patients drawn or read, told by a model where one is named, written.

make_patients(PatientSettings(source="act", n=150, out=Path("patients.yaml")))
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.files import write_jsonl, write_text
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import Budget
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import load_prompt
from cbtqa.records import Reason, Rejection
from cbtqa.settings import Settings
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.messages import filled, retold, wording
from cbtqa.simulation.playing.players import endpoint_of, price_of
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


class PatientSettings(Settings):
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
    endpoint: str | None = None
    """URL or preset of a model that writes the stories; rules do by default."""
    model: str | None = None
    """Model name at the endpoint."""
    temperature: float | None = Field(0.7, ge=0, le=2)
    """Of the stories."""
    max_tokens: int = Field(4096, ge=64)
    """Token limit of one story."""
    in_flight: int = Field(64, ge=1)
    """Most requests at a time."""

    @model_validator(mode="after")
    def _fits_together(self) -> PatientSettings:
        if self.endpoint and not self.model:
            raise ValueError("--endpoint wants --model")
        if self.endpoint and self.out is None:
            raise ValueError("--endpoint wants --out: stories cost money")
        return self


def make_patients(
    settings: PatientSettings, *, on_progress: Callable[[Progress], None] | None = None
) -> tuple[Profile, ...]:
    """Draws or reads patients and writes them where `out` says.

    Raises:
        ConfigError, DataError: the table or the file is not what it should be.
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
            profiles, player, journal, limits, on_progress=on_progress
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


# --- stories -------------------------------------------------------------------------------------
# Stories of drawn patients, written by a model through the batch engine.
#
#     told = tell_stories(profiles, player, Path("people/stories.sqlite"), limits)
#
# The model fills one field for each thing that a story has to cover, so that none can be left
# out; the narrative is the fields in order. Attributes stay as they were drawn.

FEWEST_WORDS, MOST_WORDS = 5, 150
"""Of one field: one to four sentences; assumed."""
PROMPT = "profile_story"


class _StoryTask:
    """The batch engine's task."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._prompt = load_prompt(PROMPT)

    def key(self, item: Profile) -> str:
        """Id and attributes: a profile drawn otherwise is another item."""
        drawn = json.dumps([item.attributes, item.archetype, item.name], sort_keys=True)
        return f"{item.id}|{hashlib.sha256(drawn.encode()).hexdigest()[:8]}"

    def request(self, item: Profile) -> ChatRequest:
        """Attributes in, one field for each content out."""
        table = _table_of(item)
        shape = dict.fromkeys(table.contents, "...")
        messages = self._prompt.render(
            contents="\n".join(f"- {key}: {one.asks}" for key, one in table.contents.items()),
            shape=json.dumps(shape),
            name=item.name,
            attributes="\n".join(
                f"- {table.attributes[key].label}: {', '.join(values)}"
                for key, values in item.attributes.items()
            ),
            manner=item.behaviour or "as fits the attributes",
        )
        sampling = self._player.sampling(seed_of("story", item.id))
        return ChatRequest(messages, _schema(table), "story", sampling)

    def check(self, item: Profile, reply: Reply) -> Fault | None:
        """The first field that is missing, too short or too long."""
        found = read_story(reply, _table_of(item))
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: Profile, reply: Reply, fault: Fault) -> ChatRequest:
        """The same with the fault named."""
        first = self.request(item)
        texts = wording()["again"]
        complaint = filled(texts["not_json"], detail=fault.detail[:200] or fault.reason.value)
        messages = retold(first.messages, reply.text.strip(), complaint)
        return ChatRequest(messages, first.json_schema, "story", first.sampling)


def read_story(reply: Reply, table: AttributeTable) -> str | Fault:
    """The narrative in a reply: its fields in the table's order, one paragraph each."""
    found = parse_object(reply.text, lambda value: set(table.contents) <= set(value))
    if isinstance(found, Fault):
        return found
    told = []
    for key in table.contents:
        text = found.get(key)
        n_words = len(text.split()) if isinstance(text, str) else 0
        if n_words < FEWEST_WORDS:
            return Fault(Reason.MISSING_STEP, f"{key} has {n_words} words")
        if n_words > MOST_WORDS:
            return Fault(Reason.STEP_TOO_LONG, f"{key} has {n_words} words, at most {MOST_WORDS}")
        told.append(str(text).strip())
    return "\n".join(told)


def tell_stories(
    profiles: Sequence[Profile],
    player: Player,
    journal_path: Path,
    limits: Limits,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[tuple[Profile, ...], tuple[Rejection, ...]]:
    """The profiles with their stories, and those that got none, with the reason.

    Raises:
        ConfigError: the player is no endpoint, or a profile was not drawn from a table.
        BatchStoppedError: stopped early; the same call continues.
    """
    if player.endpoint is None:
        raise ConfigError("stories are written by a model", hint="add --endpoint and --model")
    task, prompt, endpoint = _StoryTask(player), load_prompt(PROMPT), endpoint_of(player)
    price = price_of(player)
    fingerprint = {
        "model": endpoint.model,
        "endpoint_host": endpoint.host,
        "prompt_sha256": prompt.sha256,
        "sampling": json.dumps(player.sampling(None).described(), sort_keys=True),
    }
    with Journal(journal_path, fingerprint) as journal:
        run_batch(
            profiles,
            task,
            endpoint,
            journal,
            limits,
            budget=Budget(price=price) if price else None,
            n_total=len(profiles),
            on_progress=on_progress,
        )
        keys = {task.key(profile): profile for profile in profiles}
        found = [_told(keys[key], outcome, player) for key, outcome in journal.outcomes(keys)]
    told = tuple(one for one in found if isinstance(one, Profile))
    return told, tuple(one for one in found if isinstance(one, Rejection))


def _told(profile: Profile, outcome: Outcome | None, player: Player) -> Profile | Rejection:
    """The profile with its story, or why it has none."""
    reply, fault = (outcome.reply, outcome.fault) if outcome else (None, None)
    if outcome is None or not outcome.is_accepted or reply is None:
        return Rejection(
            item_id=profile.id,
            stage="generate",
            reason=fault.reason if fault else Reason.EMPTY,
            detail=fault.detail if fault else "no reply",
            raw=reply.text if reply else None,
        )
    seed = seed_of("story", profile.id)
    provenance = provenance_of(player, load_prompt(PROMPT), seed, [outcome])
    story = read_story(reply, _table_of(profile))
    assert isinstance(story, str), "an accepted reply holds a story"
    return profile.model_copy(update={"narrative": story, "provenance": provenance})


def _table_of(profile: Profile) -> AttributeTable:
    if profile.table is None:
        raise ConfigError(f"profile {profile.id} was not drawn from a table")
    return load_table(profile.table)


def _schema(table: AttributeTable) -> Mapping[str, Any]:
    fields = {key: {"type": "string"} for key in table.contents}
    shape: dict[str, Any] = {"type": "object", "properties": fields, "required": list(fields)}
    return shape | {"additionalProperties": False}
