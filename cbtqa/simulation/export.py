"""`cbtqa simulate export`: sessions as training rows, split by patient, ready for `cbtqa finetune`.

    export/
      sft/train.jsonl            {"prompt": [messages], "completion": [message]}
      sft/train.meta.jsonl       session, patient, turn of each row, in the same order
      orpo/train.jsonl           {"prompt": [...], "chosen": [...], "rejected": [...]}: all messages
      messages/train.jsonl       {"messages": [...]}: one whole session a row, where asked for
      manifest.json              counts by split and by reason; the TRL releases this is meant for

All sessions of a patient are in one split; with a single patient, all turns of a session are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import read_jsonl, write_jsonl
from cbtqa.llm.batch import OnProgress, run_anywhere
from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.cost import Estimate
from cbtqa.llm.journal import Journal
from cbtqa.llm.runs import open_run
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    new_manifest,
    now,
    refuse_empty,
    write_manifest,
)
from cbtqa.paths import make_folder
from cbtqa.records import Reason, Session, Turn, TurnMark
from cbtqa.settings import Resolved
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.marks import CONTENT_MARKS, SPOILING
from cbtqa.simulation.playing.estimate import THERAPIST_TOKENS, Calls, count_done, estimate_players
from cbtqa.simulation.playing.messages import (
    SessionView,
    TurnContext,
    read_therapist,
    tokens_of,
    turn_content,
)
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.playing.run import (
    NOTICE,
    PlayersSettings,
    at_endpoint,
    most_servers,
    service_of,
)
from cbtqa.simulation.profiles import Profile
from cbtqa.simulation.sessions import PROFILES_NAME, StudyFolder, split_sessions
from cbtqa.simulation.study import Arm, Player, ReasoningForm, StudySettings, load_study
from cbtqa.splits import SPLITS

TRL = {
    "range": ">=1.10,<2",
    "sft": "trl.SFTTrainer: prompt and completion, loss on the completion by default",
    "orpo": "trl.experimental.orpo.ORPOTrainer: all three columns are lists of messages",
}
PAIRS_JOURNAL, FINGERPRINT = "pairs.sqlite", {"journal": "preference pairs"}


class ExportSettings(PlayersSettings):
    """Flags of `cbtqa simulate export`."""

    why_one_by_one: ClassVar[str] = "it asks one model, and the two sides of a pair are by two"
    sessions: Path = Path("cbtqa-study")
    """Folder of `cbtqa simulate corpus` or `run`."""
    out: Path = Path("cbtqa-export")
    """Folder of the training rows."""
    format: Literal["rows", "inspect"] = "rows"
    """Training rows, or the judged sessions as logs for Inspect (inspect_ai). Logs take --judged,
    no other flag of rows."""
    judged: Path | None = None
    """Folder that `simulate judge --out` wrote, for logs (default: judged/ in the study)."""
    serve: Path | None = None
    """Study file in which the tuned model will play: rows take its prompts, form and limits.
    Default: the folder's own."""
    arm: str | None = None
    """Arm of --serve that will play. Default: its only arm."""
    reasoning: Literal["as_played", "cot", "plain"] = "as_played"
    """Learn to think before the answer, or the answer alone."""
    pairs: bool = True
    """Make preference pairs where the study declares who writes them."""
    messages: bool = False
    """Also write whole sessions as message lists."""
    keep_marked: bool = False
    """Keep turns with a mark: never accepted, cut, repeated, spoken as the other side ..."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of patients."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of patients."""
    split_seed: int = 0
    """Seed of the split."""

    @model_validator(mode="after")
    def _judged_is_for_logs(self) -> ExportSettings:
        if self.judged and self.format != "inspect":
            raise ValueError("--judged only makes sense with --format inspect")
        return self

    @property
    def makes_pairs(self) -> bool:
        """Whether models may be asked."""
        return self.pairs and self.format == "rows"


@dataclass
class Exported:
    folder: Path
    manifest: Manifest
    warnings: list[str] = field(default_factory=list)


def export_sessions(
    resolved: Resolved[ExportSettings], *, on_progress: OnProgress | None = None
) -> Exported:
    """Writes the rows of a study folder.

    Raises:
        ConfigError: settings that do not fit together, or an `--out` that is something else.
        DataError: no study there, or no row came out of it.
        LicenceGateError: prompts would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: stopped early while pairs were made; the same command continues.
    """
    settings = resolved.values
    if settings.validation + settings.test >= 1:
        raise ConfigError("validation and test leave nothing for train")
    started_at = now()
    work = _Export(settings, StudyFolder(settings.sessions))
    out, acknowledged = settings.out, {}
    refuse_foreign(out, "sft", "orpo", "messages", f"{PAIRS_JOURNAL}*", MANIFEST_NAME)
    if not work.writers:
        counts = work.write(out, None, on_progress)
    else:
        limits, is_acknowledged = settings.run_limits, settings.acknowledge_disclosure
        service = service_of(work.writers.values(), limits, is_acknowledged=is_acknowledged)
        with open_run(out / PAIRS_JOURNAL, FINGERPRINT, service, what="the sessions") as run:
            counts, acknowledged = work.write(out, run.journal, on_progress), run.acknowledgements
    manifest = new_manifest(
        "training rows",
        resolved,
        started_at,
        inputs=(describe_file(work.source.sessions_path),),
        prompts=work.prompts,
        counts=counts,
        acknowledgements={"notice": NOTICE, **acknowledged},
        files=tuple(describe_file(path, out) for path in sorted(out.rglob("*.jsonl"))),
    )
    write_manifest(settings.out, manifest)
    if work.writers:
        n_pairs = sum(counts["orpo"].values())
        refuse_empty(
            n_pairs, sum(counts["sft"].values()), "pairs was made", counts["dropped"], kept=out
        )
    return Exported(settings.out, manifest, work.warnings(counts))


def estimate_export(settings: ExportSettings) -> Estimate:
    """What the writers of preference pairs would still be sent; all other rows ask nobody.

    Raises:
        ConfigError, DataError: as `export_sessions`.
    """
    work = _Export(settings, StudyFolder(settings.sessions))
    rows = work.rows(Counter()) if work.writers else []
    n_in, n_out = sum(tokens_of(row.prompt) for row in rows), len(rows) * THERAPIST_TOKENS
    planned = [Calls(player, len(rows), n_in, n_out) for player in work.writers.values()]
    n_done = count_done(settings.out / PAIRS_JOURNAL, work.attempts)
    limits, most = settings.run_limits.engine, max(1, len(rows))
    return estimate_players("pairs", len(rows), planned, n_done, limits, most=most)


class _Export:
    def __init__(self, settings: ExportSettings, source: StudyFolder) -> None:
        self._settings, self.source = settings, source
        played = source.study()
        study, arm_of = _serving(settings, played)
        declared = (study.pairs or played.pairs) if settings.makes_pairs else None
        sides = {"chosen": declared.chosen, "rejected": declared.rejected} if declared else {}
        self.writers = {side: at_endpoint(one, settings) for side, one in sides.items() if one}
        is_given = "max_attempts" in settings.model_fields_set
        self.attempts = settings.max_attempts if is_given else study.attempts
        self._sessions = [one for one in source.read_sessions() if one.arm in arm_of]
        self._views = _views(source, self._sessions, study, arm_of)
        shares = {"validation": settings.validation, "test": settings.test}
        split = split_sessions(self._sessions, **shares, seed=settings.split_seed)
        self._split_of, self._split_by = split

    @property
    def prompts(self) -> dict[str, str]:
        used = [view.therapist_prompt for view in self._views.values()]
        return {prompt.name: prompt.sha256 for prompt in used}

    def write(
        self, out: Path, journal: Journal | None, on_progress: OnProgress | None
    ) -> dict[str, Any]:
        """Writes all kinds of rows, pairs with a journal only; gives the counts."""
        make_folder(out)
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        dropped: Counter[str] = Counter()
        rows = self.rows(dropped)
        counts: dict[str, Any] = {
            "n_sessions": len(self._sessions),
            "split_by": self._split_by,
            "trl": TRL,
            "sft": self._write(out / "sft", (row.made(completion=row.completion) for row in rows)),
        }
        if self._settings.messages:
            counts["messages"] = self._write(out / "messages", self._whole(dropped))
        if journal is not None:
            limits = self._settings.run_limits
            players = Players(journal, limits, self.attempts, on_progress)
            n_rooms = 2 * limits.engine.in_flight * most_servers(self.writers.values())
            pair_run = _PairRun(players, self.writers, n_rooms)
            counts["orpo"] = self._write(out / "orpo", pair_run.run(rows, dropped))
        return counts | {"dropped": dict(sorted(dropped.items()))}

    def rows(self, dropped: Counter[str]) -> list[TherapistRow]:
        """A row for every therapist turn that is fit to learn from; counts what is not."""
        rows: list[TherapistRow] = []
        for one in self._sessions:
            view, keeps_marked = self._views[one.id], self._settings.keep_marked
            rows += therapist_rows(one, view, dropped, keeps_marked=keeps_marked)
        if not rows:
            why = ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "no turns at all"
            raise DataError(
                f"no training row came out of it: {why}",
                where=str(self.source.path),
                hint="cbtqa simulate lint names the turns; --keep-marked takes marked ones",
            )
        return rows

    def _whole(self, dropped: Counter[str]) -> Iterator[TrainingRow]:
        """The messages of each session up to its first marked turn; counts those that have one."""
        for one in self._sessions:
            fit = one if self._settings.keep_marked else _fit_part(one)
            if len(fit.turns) < len(one.turns):
                dropped[
                    "session_ends_at_a_mark" if len(fit.turns) > 1 else "session_is_marked"
                ] += 1
            if len(fit.turns) > (1 if fit is not one else 0):
                facts = {"session_id": one.id, "profile_id": one.profile_id}
                yield {"messages": session_messages(fit, self._views[one.id])}, facts

    def _write(self, folder: Path, rows: Iterable[TrainingRow]) -> dict[str, int]:
        """Writes each split's rows, and beside them what they are made of."""
        counts: dict[str, int] = {}
        kept = list(rows)
        for split in SPLITS:
            own = [one for one in kept if self._split_of[one[1]["session_id"]] == split]
            counts[split] = write_jsonl(folder / f"{split}.jsonl", (row for row, _ in own))
            write_jsonl(folder / f"{split}.meta.jsonl", (meta for _, meta in own))
        return counts

    def warnings(self, counts: Mapping[str, Any]) -> list[str]:
        found = []
        n_rules = sum(not one.provenance.is_training_source for one in self._sessions)
        if n_rules:
            whose = f"{n_rules} of {len(self._sessions)} sessions were written by built-in rules"
            found.append(f"{whose}: good for trying things out, no source for training")
        if self._split_by == "session":
            found.append("there is one patient only: the splits share it and are not independent")
        empty = [split for split in SPLITS if not counts["sft"][split]]
        return [*found, *([f"no rows in {', '.join(empty)}"] if empty else [])]


def refuse_foreign(out: Path, *known: str) -> None:
    """A ConfigError where a folder holds what an export did not write; patterns of what it did."""
    if out.is_file():
        raise ConfigError(f"--out: {out} is a file")
    names = [path.name for path in out.glob("[!.]*")]
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in known)]
    if foreign:
        message = f"--out: {out} holds {foreign[0]} and is no export"
        raise ConfigError(message, hint="name a new one")


def _serving(
    settings: ExportSettings, played: StudySettings
) -> tuple[StudySettings, Mapping[str, Arm]]:
    """The study in whose form rows are written, and for each arm played the arm that will serve."""
    study = played if settings.serve is None else load_study(settings.serve)
    arms = study.arms if settings.arm is None else (study.arm(settings.arm),)
    if settings.serve is None:
        chosen = {arm.name: arm for arm in arms}
    elif len(arms) > 1:
        names = ", ".join(arm.name for arm in arms)
        raise ConfigError(f"--serve has several arms: {names}", hint="name one with --arm")
    else:
        chosen = {arm.name: arms[0] for arm in played.arms}
    if settings.reasoning != "as_played":
        changes = {"reasoning": settings.reasoning}
        chosen = {name: arm.model_copy(update=changes) for name, arm in chosen.items()}
    return study, chosen


def _views(
    source: StudyFolder,
    sessions: Sequence[Session],
    study: StudySettings,
    arm_of: Mapping[str, Arm],
) -> dict[str, SessionView]:
    """The view of every session, with the state that the session before handed over."""
    path = source.path / PROFILES_NAME
    profiles = {profile.id: profile for profile in read_jsonl(path, Profile)}
    states = {(one.arm, one.profile_id, one.replicate, one.number): one.state for one in sessions}
    views = {}
    for one in sessions:
        if one.profile_id not in profiles:
            raise DataError(f"no profile '{one.profile_id}' of {one.id}", where=str(path))
        before = states.get((one.arm, one.profile_id, one.replicate, one.number - 1))
        profile = profiles[one.profile_id]
        views[one.id] = SessionView(study, arm_of[one.arm], profile, one.number, state=before)
    return views


UNFIT_MARKS: tuple[TurnMark, ...] = (
    *CONTENT_MARKS,
    *("cut_at_label", "not_accepted", "unsupervised", "unguarded"),
)
"""Turns with one of these are no example to learn from."""
TrainingRow = tuple[dict[str, Any], dict[str, Any]]
"""A row as trainers read it, and the facts about it that go into another file."""
CLOSED = ("ended", "written")
"""Stop reasons after which the last therapist turn carries the end token."""


@dataclass(frozen=True)
class TherapistRow:
    """One therapist turn to learn, with what the therapist saw before it."""

    session: Session
    turn: int
    """Counts therapist turns, from 1."""
    view: SessionView
    """Renders the prompt here as in a live session: a tuned model is asked as it learned."""
    history: tuple[Turn, ...]
    prompt: tuple[Message, ...]
    completion: str

    def made(self, **answers: str) -> TrainingRow:
        """The prompt, and an assistant's message in each named column."""
        columns = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        meta = {
            "session_id": self.session.id,
            "profile_id": self.session.profile_id,
            "arm": self.session.arm,
            "number": self.session.number,
            "turn": self.turn,
        }
        return {"prompt": list(self.prompt), **columns}, meta


def therapist_rows(
    session: Session, view: SessionView, dropped: Counter[str], *, keeps_marked: bool
) -> Iterator[TherapistRow]:
    """The rows of one session; turns that become none are counted by reason."""
    opens_rightly = bool(session.turns) and session.turns[0].role == "patient"
    if has_adjacent_speakers(session.turns) or not opens_rightly:
        dropped["turns_do_not_alternate"] += session.n_therapist_turns
        return
    for number, place in enumerate(range(1, len(session.turns), 2), 1):
        turn, history = session.turns[place], session.turns[:place]
        messages = view.fitting(view.therapist_messages(history))
        if messages is None:
            dropped["over_the_context"] += 1
        elif not keeps_marked and (reason := _unfit(session.turns, place)):
            dropped[reason] += 1
        elif not keeps_marked and view.arm.reasoning == "cot" and not turn.reasoning:
            dropped["no_reasoning"] += 1
        else:
            is_last = place == len(session.turns) - 1
            ends = view.study.end_token and is_last and session.stop_reason in CLOSED
            completion = turn_content(turn, view.arm.reasoning, ends=ends)
            yield TherapistRow(session, number, view, history, tuple(messages), completion)


def _unfit(turns: Sequence[Turn], place: int) -> str | None:
    """Why the turn at a place is no example to learn from; None when it is one."""
    for mark in UNFIT_MARKS:
        if mark in turns[place].marks:
            return f"marked_{mark}"
    for mark in SPOILING:
        if any(mark in turn.marks for turn in turns[:place]):
            return f"after_{mark}"
    asked = [mark for mark in CONTENT_MARKS if mark in turns[place - 1].marks]
    return f"answers_{asked[0]}" if asked else None


def _fit_part(session: Session) -> Session:
    """A session up to its first turn that is no example to learn from."""
    fit = takewhile(lambda turn: not set(turn.marks) & set(UNFIT_MARKS), session.turns)
    return session.model_copy(update={"turns": tuple(fit)})


def has_adjacent_speakers(turns: Sequence[Turn]) -> bool:
    """Whether one side speaks twice in a row."""
    return any(one.role == other.role for one, other in pairwise(turns))


def session_messages(session: Session, view: SessionView) -> list[Message]:
    """A whole session as one list of messages, for trainers that learn from all turns at once."""
    turns = session.turns
    said = turns[:-1] if turns and turns[-1].role == "patient" else turns
    messages = view.therapist_messages(said)
    return messages if said else messages[:1]


# --- preference pairs: two models answer one and the same prompt ----------------------------------


@dataclass(frozen=True)
class _PairRun:
    """The making of pairs; a side without a usable answer, or two alike, make none."""

    players: Players
    sides: Mapping[str, Player]
    n_rooms: int
    """Most pairs in the making."""
    found: dict[int, tuple[str | Fault, str | Fault]] = field(default_factory=dict)

    def run(self, rows: Sequence[TherapistRow], dropped: Counter[str]) -> list[TrainingRow]:
        """The pairs in the order of the rows; paid answers are kept in the journal."""
        run_anywhere(self._ask_all(rows))
        self.players.line.conclude()
        made = []
        for number, row in enumerate(rows):
            chosen, rejected = self.found[number]
            if isinstance(chosen, Fault):
                dropped[f"chosen_{chosen.reason.value}"] += 1
            elif isinstance(rejected, Fault):
                dropped[f"rejected_{rejected.reason.value}"] += 1
            elif chosen == rejected:
                dropped["both_sides_alike"] += 1
            else:
                made.append(row.made(chosen=chosen, rejected=rejected))
        return made

    async def _ask_all(self, rows: Sequence[TherapistRow]) -> None:
        async with self.players.line as line:
            opened = {side: await self.players.open(one) for side, one in self.sides.items()}
            self.players.book_earlier(lambda key: self.sides.get(key.split("|")[-2]))
            line.meter.n_total = len(rows) * len(opened)
            room = asyncio.Semaphore(self.n_rooms)
            for number, row in enumerate(rows):
                line.start(self._ask(number, row, opened, room))

    async def _ask(
        self,
        number: int,
        row: TherapistRow,
        opened: Mapping[str, OpenPlayer],
        room: asyncio.Semaphore,
    ) -> None:
        async with room:
            chosen: str | Fault = row.completion
            if "chosen" in opened:
                chosen = await self._words(row, "chosen", opened["chosen"])
            self.found[number] = chosen, await self._words(row, "rejected", opened["rejected"])

    async def _words(self, row: TherapistRow, side: str, player: OpenPlayer) -> str | Fault:
        """A model's answer at this place, in the form of the training target."""
        # what its tokens cost changes no word
        unpriced = player.settings.model_copy(update={"price_in": None, "price_out": None})
        asked = json.dumps([list(row.prompt), unpriced.model_dump(mode="json")], sort_keys=True)
        mark = hashlib.sha256(asked.encode()).hexdigest()[:12]
        seed = seed_of("pair", row.session.seed, row.turn, side)
        words, _ = await self.players.ask(
            Call(
                key=f"{row.session.id}|{row.turn}|{side}|{mark}",
                player=player,
                context=TurnContext("therapist", row.view, row.history, seed, row.turn),
                messages=row.prompt,
                seed=seed,
                read=partial(_content, form=row.view.arm.reasoning),
                is_spoken=True,
            )
        )
        return words


def _content(reply: Reply, form: ReasoningForm) -> str | Fault:
    """A reply as a training target: in its form, with nothing missing."""
    spoken = read_therapist(reply, form)
    if isinstance(spoken, Fault):
        return spoken
    if not spoken.text:
        return Fault(Reason.EMPTY, "nothing but the end token")
    if form == "cot" and not spoken.reasoning:
        return Fault(Reason.EMPTY, "no reasoning")
    turn = Turn(role="therapist", text=spoken.text, reasoning=spoken.reasoning)
    return turn_content(turn, form, ends=spoken.asks_to_end)
