"""What a study declares in its YAML file: arms, patients, turns, events, instruments, judges.

    study = load_study(Path("tahir-act"))
    [arm.name for arm in study.arms]
    study.therapist_prompt(study.arms[0])      # session_therapist_act

An arm is one condition of a study. Everything outside `arms` holds for all arms alike; what may
differ between arms is declared in them, so that `simulate lint` can compare it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cbtqa.errors import ConfigError, DataError, faults_of
from cbtqa.files import read_text
from cbtqa.llm.chat import Sampling
from cbtqa.llm.endpoint import checked_url
from cbtqa.plain_values import parse_yaml
from cbtqa.prompts import load_prompt
from cbtqa.records import NonEmptyText
from cbtqa.settings import Settings


def shipped_yaml(*path: str) -> Any:
    """A YAML file of this room, such as `wording.yaml`."""
    return parse_yaml(files(__package__).joinpath(*path).read_text(encoding="utf-8"))


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = f"{prefix}{key}"
        found |= flattened(one, f"{name}.") if isinstance(one, Mapping) else {name: one}
    return found


HistoryForm = Literal["answers", "answers_and_reasoning"]
"""What the therapist sees of its own earlier turns."""
ReasoningForm = Literal["plain", "cot"]
"""Whether the therapist answers at once, or thinks in a block of its own before it answers."""


class Player(Settings):
    """Who plays a part: the built-in rules, a model behind an endpoint, or a model on this machine.

    Exactly one of `scripted`, `endpoint` (with `model`) and a model on this machine (`backbone`,
    `adapter`, or both) is named.
    """

    scripted: str | None = None
    """A variant of the built-in rules (no model), such as `attentive`."""
    endpoint: str | tuple[str, ...] | None = None
    """URL or preset, as everywhere in cbtqa; the key comes from the environment. A list: servers of
    the same model, which share the work."""
    model: str | None = None
    key_env: str | None = None
    """Environment variable that holds the key, where a study asks several providers by URL. Its
    name ends in `_API_KEY`, or the user's own CBTQA_KEY_VARIABLES lists it."""
    backbone: str | None = None
    """Preset, folder or Hub id of a model run on this machine."""
    adapter: Path | None = None
    """LoRA adapter folder made by `cbtqa finetune`; on the base that it names when `backbone` is
    left out."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as `top_k`."""
    seed_field: str | None = "seed"
    """Name of the request's seed, such as `random_seed` at Mistral; None for a server that knows
    none."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens; the dated table's when left out."""
    price_out: float | None = Field(default=None, ge=0)

    @field_validator("endpoint", mode="before")
    @classmethod
    def _a_list_of_one_is_that_one(cls, value: object) -> object:
        many = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(one, str) for one in many):
            raise ValueError("expected an address or a preset, or a list of them")
        servers = tuple(dict.fromkeys(many))
        return servers[0] if len(servers) == 1 else servers

    @model_validator(mode="after")
    def _is_exactly_one(self) -> Self:
        given = [name for name in ("scripted", "endpoint") if getattr(self, name)]
        given += ["backbone or adapter"] if self.is_local else []
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"a player is one of scripted, endpoint, backbone (or adapter); found {found}"
            )
        if self.endpoint and not self.model:
            raise ValueError("endpoint wants model")
        try:
            for url in self.endpoints:
                if "://" in url:
                    checked_url(url)
        except ConfigError as error:  # which does not repeat a secret in the address
            raise ValueError(str(error)) from None
        if self.is_local and self.seed_field != "seed":
            raise ValueError("seed_field is for endpoints")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out go together")
        return self

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The servers that are asked; none for rules and for a model on this machine."""
        named = (self.endpoint,) if isinstance(self.endpoint, str) else self.endpoint or ()
        return tuple(filter(None, named))

    @property
    def is_local(self) -> bool:
        return self.backbone is not None or self.adapter is not None

    @property
    def name(self) -> str:
        """Model name as tables and provenance show it."""
        if self.scripted:
            return f"scripted:{self.scripted}"
        if self.is_local:
            base = (self.backbone or "").rstrip("/").rsplit("/", 1)[-1]
            return "+".join(part for part in (base, self.adapter and self.adapter.name) if part)
        return str(self.model)

    def sampling(self, seed: int | None) -> Sampling:
        """How its words are drawn, for one request."""
        is_usual = self.seed_field == "seed"
        has_other = self.seed_field is not None and not is_usual and seed is not None
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=seed if is_usual else None,
            stop=self.stop,
            extra=self.extra | ({str(self.seed_field): seed} if has_other else {}),
        )


class Training(Settings):
    """How an arm's model was tuned, as far as it is known; compared by `simulate lint`."""

    method: str | None = None
    """Such as `sft` or `orpo`."""
    teacher: str | None = None
    """The model whose words it learned."""
    data: str | None = None
    prompt: str | None = None
    """Prompt of the training rows, where it is not the one used in the sessions."""
    history: HistoryForm | None = None
    """Form of the history in the training rows."""


class Observed(Settings):
    """What is known of sessions that lie elsewhere; measured sessions take its place."""

    n_sessions: int = Field(gt=0)
    words_per_turn: float | None = Field(default=None, gt=0)
    stops: dict[str, int] = Field(default_factory=dict)
    """Stop reason to number of sessions, early ones only."""


class Arm(Settings):
    """One condition: who plays the therapist, and how."""

    name: str = Field(pattern=r"^[^/|\s][^/|]*$")
    """A part of session ids: any letters but `/` and `|`."""
    therapist: Player
    reasoning: ReasoningForm = "plain"
    prompt: str | None = None
    """Therapist prompt (id or path); the study's own by default."""
    history: HistoryForm = "answers"
    levels: dict[str, str] = Field(default_factory=dict)
    """Factor to level, such as `model: llama`, for models with several factors."""
    training: Training | None = None
    observed: Observed | None = None


class Patients(Settings):
    """Which patients are played: ready-made ones, a file of your own, or drawn ones."""

    ready: Literal["test", "archetypes"] | None = None
    """`test`: five patients for CBT. `archetypes`: four kinds for ACT."""
    file: Path | None = None
    """YAML file of profiles, or a `profiles.jsonl`."""
    draw: str | None = None
    """Attribute table: `cbt`, `act`, or a YAML file."""
    n: int | None = Field(default=None, ge=1)
    """How many are drawn, or the first so many of the others."""

    @model_validator(mode="after")
    def _is_exactly_one(self) -> Self:
        given = [name for name in ("ready", "file", "draw") if getattr(self, name)]
        if len(given) != 1:
            found = given or "none"
            raise ValueError(f"patients come from one of ready, file, draw; found {found}")
        if self.draw and self.n is None:
            raise ValueError("draw wants n, the number of patients")
        return self


class TurnLimits(Settings):
    """When a session may and must end, counted in therapist turns."""

    min: int = Field(default=4, ge=1)
    """An end token before so many turns is taken out, marked and does not end the session."""
    max: int = Field(default=25, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Events(Settings):
    """Notes given to the patient in mid-session."""

    set: str = "default"
    """Shipped set of events, or a YAML file."""
    first: int = Field(default=8, ge=1)
    last: int = Field(default=18, ge=1)
    """Patient turns in which an event may fall, both included."""
    probability: float = Field(default=0.0, ge=0, le=1)
    """Chance of an event in each of these turns; 0 means none."""
    most: int | None = Field(default=None, ge=1)
    drawn: Literal["shared", "per_arm"] = "shared"
    """`per_arm` draws them anew for every arm, a fault of the original kept for comparison."""


class Judge(Settings):
    """A language model that rates sessions."""

    player: Player
    repeats: int = Field(default=3, ge=1)


class Pairs(Settings):
    """Who writes the two sides of preference pairs, from one and the same prompt."""

    chosen: Player | None = None
    """A strong model; None takes the words of the corpus itself."""
    rejected: Player
    """Such as the model to be tuned, as it is before tuning."""


class Deviation(Settings):
    """Where this recipe departs from the study that it follows."""

    original: NonEmptyText
    here: NonEmptyText
    why: NonEmptyText


class StudySettings(Settings):
    id: NonEmptyText
    title: str = ""
    seed: int = 0
    approach: Literal["cbt", "act"]
    factor: tuple[str, ...] = ("therapist.model", "therapist.scripted", "therapist.adapter")
    """What the arms are meant to differ in: fields of an arm, such as `reasoning`."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    patients: Patients = Patients(ready="test")
    written: bool = False
    """True for a corpus in which one model writes whole sessions, part by part, both sides."""
    patient: Player = Player(scripted="patient")
    patient_prompt: str = "session_patient"
    patient_sees: int | None = Field(default=None, ge=1)
    """So many messages of the history at most are shown to the patient; None: all."""
    prompt: str | None = None
    """Therapist prompt of all arms; `session_therapist_<approach>` by default."""
    prompt_version: int | None = Field(default=None, ge=1)
    """Version of the shipped prompts that the study does not name itself; None: the newest."""
    sessions: int = Field(default=1, ge=1)
    """Sessions of each patient with each arm, one after the other."""
    replicates: int = Field(default=1, ge=1)
    turns: TurnLimits = TurnLimits()
    end_token: bool = True
    """Whether the therapist may end the session; else it always runs to `turns.max`."""
    context_tokens: int = Field(default=9_000, ge=200)
    """Estimated tokens of prompt, history and reply together."""
    when_full: Literal["stop", "drop_oldest"] = "stop"
    cut_replies: Literal["refuse", "keep"] = "refuse"
    """A reply cut at the token limit is asked again and then ends the session, or is kept up to
    its last whole sentence and marked."""
    attempts: int = Field(default=3, ge=1, le=20)
    """Replies asked for in one place, faulty ones included."""
    events: Events = Events()
    supervisor: Player | None = None
    """Reads each therapist turn before it is said; None: nobody does."""
    validator: Player | None = None
    """Reads each patient turn likewise."""
    guard: Player | None = None
    """Reads each new turn of both sides that a model says, with the turns before, and names faults
    as `cbtqa.simulation.marks` does; None: words alone are checked."""
    repairs: int = Field(default=2, ge=0)
    """Times a turn is written again because of a fault of `cbtqa.simulation.marks`, which is named;
    then it is kept and marked. 0: turns are marked alone."""
    revisions: int = Field(default=2, ge=0)
    """Times a turn is written again on the supervisor's word; then it is kept and marked."""
    summariser: Player | None = None
    """Writes what a session hands to the next; wanted when `sessions` is above 1."""
    instruments: tuple[str, ...] = ()
    judges: tuple[Judge, ...] = ()
    pairs: Pairs | None = None
    """For `cbtqa simulate export`; None: no preference pairs."""
    deviations: tuple[Deviation, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"arms of one name: {', '.join(twice)}")
        if self.written and (len(self.arms) > 1 or self.approach != "cbt"):
            raise ValueError("a written corpus has one arm, and a course of CBT")
        if self.sessions > 1 and self.summariser is None and not self.written:
            raise ValueError("several sessions want a summariser (scripted: summariser)")
        if self.guard is not None and (self.written or self.guard.scripted):
            raise ValueError("a guard is a model, and reads sessions that are played turn by turn")
        return self

    def therapist_prompt(self, arm: Arm) -> str:
        """Name of the prompt that an arm's therapist is given."""
        own = arm.prompt or self.prompt
        return own or self.shipped_prompt(f"session_therapist_{self.approach}")

    def shipped_prompt(self, name: str) -> str:
        """Name of a shipped prompt in this study's version, or the newest before it; a version or
        path given stays."""
        if self.prompt_version is None or "." in name:
            return name
        return f"{name}.v{min(self.prompt_version, load_prompt(name).header.version)}"

    def players(self) -> tuple[Player, ...]:
        """Everyone who is asked in a session."""
        others = (self.patient, self.supervisor, self.validator, self.summariser, self.guard)
        return (*(arm.therapist for arm in self.arms), *(one for one in others if one))

    def arm(self, name: str) -> Arm:
        """The arm of this name.

        Raises:
            ConfigError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise ConfigError(f"no arm '{name}' in study {self.id}", hint=f"arms: {known}")


def shipped_recipes() -> list[str]:
    """Names of the studies that come with the package, such as `tahir-act`."""
    found = files(__package__).joinpath("recipes").iterdir()
    return sorted(one.name.removesuffix(".yaml") for one in found)


def recipe_path(path: Path) -> Path:
    """The path, or a shipped recipe of that name (`tahir-act`) where there is no such file."""
    name = path.name.removesuffix(".yaml")
    is_recipe = path.parent.name in ("", "recipes") and name in shipped_recipes()
    if is_recipe and not path.exists():
        with as_file(files(__package__).joinpath("recipes", f"{name}.yaml")) as found:
            return found
    return path


def load_study(path: Path | None = None, *, built_in: str = "demo") -> StudySettings:
    """The study declared in a YAML file, or of a recipe by name; a built-in one when None.

    Args:
        built_in: `demo`, `demo-endpoint`, `demo-corpus-cbt` or `demo-corpus-act`.

    Raises:
        ConfigError: not YAML, an unknown key or a wrong value; each with file and field.
        DataError: no such file.
    """
    if path is None:
        where = f"{built_in}.yaml"
        text = files(__package__).joinpath(where).read_text(encoding="utf-8")
    else:
        found, where = recipe_path(path), str(path)
        if not found.exists() and not found.suffix:
            known = ", ".join(shipped_recipes())
            raise DataError("no such study", where=where, hint=f"a YAML file, or one of: {known}")
        text = read_text(found)
    try:
        value = parse_yaml(text, where)
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected `key: value` lines")
    return parse_study(value, where)


def parse_study(value: Mapping[str, Any], where: str) -> StudySettings:
    """Checked settings.

    Raises:
        ConfigError: lists every bad field as `file: field: what`.
    """
    try:
        return StudySettings.model_validate(value)
    except ValidationError as error:
        lines = []
        # a list whose items are wrong is also told to be empty: that is no second fault
        found = faults_of(error)
        inner = [item["loc"] for item in found]
        for item in found:
            n = len(item["loc"])
            if item["type"] == "too_short" and any(
                len(loc) > n and loc[:n] == item["loc"] for loc in inner
            ):
                continue
            field = ".".join(str(part) for part in item["loc"])
            what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            lines.append(f"{where}: {field}: {what}" if field else f"{where}: {what}")
        raise ConfigError("\n".join(lines)) from None
