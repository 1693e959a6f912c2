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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import read_jsonl, write_jsonl
from cbtqa.llm.batch import Line, OnProgress, run_anywhere
from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.cost import Estimate
from cbtqa.llm.journal import Journal
from cbtqa.llm.runs import open_run
from cbtqa.manifest import MANIFEST_NAME, Manifest, describe_file, new_manifest, now, write_manifest
from cbtqa.records import Reason, Session, SessionState, Turn, TurnMark, Usage
from cbtqa.settings import Resolved
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.estimate import THERAPIST_TOKENS, count_done, estimate_players
from cbtqa.simulation.playing.messages import (
    Casting,
    Scene,
    read_therapist,
    tokens_of,
    turn_content,
)
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.playing.run import NOTICE, PlayersSettings, RunLimits, at_endpoint, service_of
from cbtqa.simulation.profiles import Profile
from cbtqa.simulation.sessions import PROFILES_NAME, StudyFolder, split_sessions
from cbtqa.simulation.study import Arm, Pairs, ReasoningForm, StudySettings, load_study
from cbtqa.splits import SPLITS

TRL = {
    "range": ">=1.10,<2",
    "sft": "trl.SFTTrainer: prompt and completion, loss on the completion by default",
    "orpo": "trl.experimental.orpo.ORPOTrainer: all three columns are lists of messages",
}
PAIRS_JOURNAL, FINGERPRINT = "pairs.sqlite", {"journal": "preference pairs"}


class ExportSettings(PlayersSettings):
    """Flags of `cbtqa simulate export`."""

    sessions: Path = Path("cbtqa-study")
    """Folder of `cbtqa simulate corpus` or `run`."""
    out: Path = Path("cbtqa-export")
    """Folder of the training rows."""
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
    """Keep turns that a supervisor never accepted or that were cut."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of patients."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of patients."""
    split_seed: int = 0
    """Seed of the split."""


@dataclass
class Exported:
    """What was written."""

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
    out, acknowledged = _open_out(settings.out), {}
    if work.pairs is None:
        counts = work.write(out, None, on_progress)
    else:
        askers = (work.pairs.chosen, work.pairs.rejected)
        limits, is_acknowledged = settings.run_limits, settings.acknowledge_disclosure
        service = service_of(askers, limits, is_acknowledged=is_acknowledged)
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
    return Exported(settings.out, manifest, work.warnings(counts))


def estimate_export(settings: ExportSettings) -> Estimate:
    """What the writers of preference pairs would still be sent; all other rows ask nobody.

    Raises:
        ConfigError, DataError: as `export_sessions`.
    """
    work = _Export(settings, StudyFolder(settings.sessions))
    rows = work.rows(Counter()) if work.pairs else []
    usage = Usage(
        prompt_tokens=sum(tokens_of(row.prompt) for row in rows),
        completion_tokens=len(rows) * THERAPIST_TOKENS,
    )
    askers = (work.pairs.chosen, work.pairs.rejected) if work.pairs else ()
    spent = [(player, len(rows), usage) for player in askers if player is not None]
    n_done = count_done(settings.out / PAIRS_JOURNAL, work.attempts)
    limits = settings.run_limits.engine
    return estimate_players("pairs", len(rows), spent, n_done, limits)


class _Export:
    """One call of `export_sessions`."""

    def __init__(self, settings: ExportSettings, source: StudyFolder) -> None:
        self._settings, self.source = settings, source
        played = source.study()
        study, arm_of = _serving(settings, played)
        declared = (study.pairs or played.pairs) if settings.pairs else None
        self.pairs = declared and Pairs(
            chosen=declared.chosen and at_endpoint(declared.chosen, settings),
            rejected=at_endpoint(declared.rejected, settings),
        )
        is_given = "max_attempts" in settings.model_fields_set
        self.attempts = settings.max_attempts if is_given else study.attempts
        self._sessions = [one for one in source.read_sessions() if one.arm in arm_of]
        self._castings = _castings(source, self._sessions, study, arm_of)
        self._split_of, self._split_by = split_sessions(
            self._sessions,
            validation=settings.validation,
            test=settings.test,
            seed=settings.split_seed,
        )

    @property
    def prompts(self) -> dict[str, str]:
        """Therapist prompts of the rows by hash."""
        used = [casting.therapist_prompt for casting in self._castings.values()]
        return {prompt.name: prompt.sha256 for prompt in used}

    def write(
        self, out: Path, journal: Journal | None, on_progress: OnProgress | None
    ) -> dict[str, Any]:
        """Writes all kinds of rows, pairs with a journal only; gives the counts."""
        dropped: Counter[str] = Counter()
        rows = self.rows(dropped)
        counts: dict[str, Any] = {
            "n_sessions": len(self._sessions),
            "split_by": self._split_by,
            "trl": TRL,
            "sft": self._write_rows(out / "sft", rows, _sft_row),
        }
        if self._settings.messages:
            counts["messages"] = self._write_sessions(out / "messages")
        if self.pairs is not None and journal is not None:
            made = make_pairs(
                rows,
                self.pairs,
                journal,
                self._settings.run_limits,
                dropped,
                attempts=self.attempts,
                on_progress=on_progress,
            )
            words = {id(row): (chosen, rejected) for row, chosen, rejected in made}
            counts["orpo"] = self._write_rows(
                out / "orpo",
                [row for row, _, _ in made],
                lambda row: _pair_row(row, *words[id(row)]),
            )
        return counts | {"dropped": dict(sorted(dropped.items()))}

    def rows(self, dropped: Counter[str]) -> list[TherapistRow]:
        """A row for every therapist turn that is fit to learn from; counts what is not."""
        keeps_marked = self._settings.keep_marked
        rows = [
            row
            for one in self._sessions
            for row in therapist_rows(
                one, self._castings[one.id], dropped, keeps_marked=keeps_marked
            )
        ]
        if not rows:
            why = ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "no turns at all"
            raise DataError(f"no training row came out of it: {why}", where=str(self.source.path))
        return rows

    def _write_rows(
        self,
        folder: Path,
        rows: Sequence[TherapistRow],
        shape: Callable[[TherapistRow], dict[str, Any]],
    ) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split in SPLITS:
            own = [row for row in rows if self._split_of[row.session.id] == split]
            counts[split] = write_jsonl(folder / f"{split}.jsonl", map(shape, own))
            write_jsonl(folder / f"{split}.meta.jsonl", (row.meta() for row in own))
        return counts

    def _write_sessions(self, folder: Path) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split in SPLITS:
            own = [one for one in self._sessions if one.turns and self._split_of[one.id] == split]
            rows = ({"messages": session_messages(one, self._castings[one.id])} for one in own)
            counts[split] = write_jsonl(folder / f"{split}.jsonl", rows)
            metas = ({"session_id": one.id, "profile_id": one.profile_id} for one in own)
            write_jsonl(folder / f"{split}.meta.jsonl", metas)
        return counts

    def warnings(self, counts: Mapping[str, Any]) -> list[str]:
        """What a user of the rows should know."""
        found = []
        n_rules = sum(not one.provenance.is_training_source for one in self._sessions)
        if n_rules:
            found.append(
                f"{n_rules} of {len(self._sessions)} sessions were written by built-in rules: good "
                "for trying things out, no source for training"
            )
        if self._split_by == "session":
            found.append("there is one patient only: the splits share it and are not independent")
        empty = [split for split in SPLITS if not counts["sft"][split]]
        return [*found, *([f"no rows in {', '.join(empty)}"] if empty else [])]


def _open_out(out: Path) -> Path:
    if out.is_file():
        raise ConfigError(f"--out: {out} is a file")
    known = ("sft", "orpo", "messages", PAIRS_JOURNAL, MANIFEST_NAME)
    foreign = [path.name for path in out.glob("[!.]*") if not path.name.startswith(known)]
    if foreign:
        raise ConfigError(
            f"--out: {out} holds {foreign[0]} and is no export", hint="name a new one"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    return out


# --- who sees what -------------------------------------------------------------------------------


def _serving(
    settings: ExportSettings, played: StudySettings
) -> tuple[StudySettings, Mapping[str, Arm]]:
    """The study in whose form rows are written, and for each arm played the arm that will serve."""
    study = played
    if settings.serve is not None:
        study = load_study(settings.serve)
    arms = study.arms if settings.arm is None else (study.arm(settings.arm),)
    if settings.serve is not None and len(arms) > 1:
        names = ", ".join(arm.name for arm in arms)
        raise ConfigError(f"--serve has several arms: {names}", hint="name one with --arm")
    chosen = {
        arm.name: arms[0] if settings.serve is not None else arm
        for arm in played.arms
        if settings.serve is not None or arm in arms
    }
    if settings.reasoning != "as_played":
        changes = {"reasoning": settings.reasoning}
        chosen = {name: arm.model_copy(update=changes) for name, arm in chosen.items()}
    return study, chosen


def _castings(
    source: StudyFolder,
    sessions: Sequence[Session],
    study: StudySettings,
    arm_of: Mapping[str, Arm],
) -> dict[str, Casting]:
    """The views of every session, with the state that the session before handed over."""
    path = source.path / PROFILES_NAME
    profiles = {profile.id: profile for profile in read_jsonl(path, Profile)}
    states: dict[tuple[str, str, int, int], SessionState | None] = {
        (one.arm, one.profile_id, one.replicate, one.number): one.state for one in sessions
    }
    castings = {}
    for one in sessions:
        if one.profile_id not in profiles:
            raise DataError(f"no profile '{one.profile_id}' of {one.id}", where=str(path))
        before = states.get((one.arm, one.profile_id, one.replicate, one.number - 1))
        profile = profiles[one.profile_id]
        castings[one.id] = Casting(study, arm_of[one.arm], profile, one.number, before)
    return castings


# --- rows ----------------------------------------------------------------------------------------


def _sft_row(row: TherapistRow) -> dict[str, Any]:
    return {
        "prompt": list(row.prompt),
        "completion": [{"role": "assistant", "content": row.completion}],
    }


def _pair_row(row: TherapistRow, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": list(row.prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


# --- rows ----------------------------------------------------------------------------------------
# Training rows from sessions: the prompt of each row is the therapist's view at serve time.
#
#     for row in therapist_rows(session, casting): row.prompt, row.completion
#
# `Casting.therapist_messages` renders both a live session and a training row, so that a tuned
# model is asked in the form in which it learned.

UNFIT_MARKS: frozenset[TurnMark] = frozenset(
    ("not_accepted", "unsupervised", "cut", "cut_at_label")
)
"""Turns with one of these are no example to learn from."""
CLOSED: frozenset[str] = frozenset(("ended", "written"))
"""Stop reasons after which the last therapist turn carries the end token."""


@dataclass(frozen=True)
class TherapistRow:
    """One therapist turn to learn, with what the therapist saw before it."""

    session: Session
    turn: int
    """Counts therapist turns, from 1."""
    casting: Casting
    history: tuple[Turn, ...]
    prompt: tuple[Message, ...]
    completion: str

    def meta(self) -> dict[str, Any]:
        """What stands beside the row, never inside it."""
        return {
            "session_id": self.session.id,
            "profile_id": self.session.profile_id,
            "arm": self.session.arm,
            "number": self.session.number,
            "turn": self.turn,
        }


def therapist_rows(
    session: Session, casting: Casting, dropped: Counter[str], *, keeps_marked: bool = False
) -> Iterator[TherapistRow]:
    """The rows of one session; what becomes none is counted under its reason.

    Args:
        casting: the views at serve time, with the state that this session began with.
    """
    opens_rightly = bool(session.turns) and session.turns[0].role == "patient"
    if has_adjacent_speakers(session.turns) or not opens_rightly:
        dropped["turns_do_not_alternate"] += session.n_therapist_turns
        return
    number = 0
    for place, turn in enumerate(session.turns):
        if turn.role != "therapist":
            continue
        number += 1
        history = session.turns[:place]
        reason = None if keeps_marked else _unfit(turn, casting)
        view = casting.fitting(casting.therapist_messages(history))
        if view is None:
            reason = "over_the_context"
        if reason is not None or view is None:
            dropped[reason or ""] += 1
            continue
        is_last = place == len(session.turns) - 1
        ends = casting.study.end_token and is_last and session.stop_reason in CLOSED
        completion = turn_content(turn, casting.arm.reasoning, ends=ends)
        yield TherapistRow(session, number, casting, history, tuple(view), completion)


def _unfit(turn: Turn, casting: Casting) -> str | None:
    marks = sorted(UNFIT_MARKS.intersection(turn.marks))
    if marks:
        return f"marked_{marks[0]}"
    if casting.arm.reasoning == "cot" and not turn.reasoning:
        return "no_reasoning"
    return None


def has_adjacent_speakers(turns: Sequence[Turn]) -> bool:
    """Whether one side speaks twice in a row."""
    return any(one.role == other.role for one, other in pairwise(turns))


def session_messages(session: Session, casting: Casting) -> list[Message]:
    """A whole session as one list of messages, for trainers that learn from all turns at once."""
    messages = casting.therapist_messages(session.turns)
    if session.turns and session.turns[-1].role == "patient":
        messages = messages[:-1]
    return messages


# --- pairs ---------------------------------------------------------------------------------------
# Preference pairs: two models answer one and the same prompt.
#
#     pairs = make_pairs(rows, study.pairs, journal, limits, dropped)
#
# A pair is dropped, and counted, when a side gives no usable answer or both say the same.

Pair = tuple[TherapistRow, str, str]
"""Row, chosen words, rejected words."""


def make_pairs(
    rows: Sequence[TherapistRow],
    pairs: Pairs,
    journal: Journal,
    limits: RunLimits,
    dropped: Counter[str],
    *,
    attempts: int = 3,
    on_progress: OnProgress | None = None,
) -> list[Pair]:
    """The pairs in the order of the rows; paid answers are kept in the journal.

    Raises:
        IncompleteRunError: stopped early; the same call continues.
        EndpointError: an endpoint refuses every request.
    """
    asking = _Asking(pairs, journal, limits, attempts, on_progress)
    sides = run_anywhere(asking.both(rows))
    asking.line.conclude()
    made: list[Pair] = []
    for row, (chosen, rejected) in zip(rows, sides, strict=True):
        if isinstance(chosen, Fault) or isinstance(rejected, Fault):
            side, fault = (
                ("chosen", chosen) if isinstance(chosen, Fault) else ("rejected", rejected)
            )
            assert isinstance(fault, Fault)
            dropped[f"{side}_{fault.reason.value}"] += 1
        elif chosen == rejected:
            dropped["both_sides_alike"] += 1
        else:
            made.append((row, chosen, rejected))
    return made


class _Asking:
    """One call of `make_pairs`."""

    def __init__(
        self,
        pairs: Pairs,
        journal: Journal,
        limits: RunLimits,
        attempts: int,
        on_progress: OnProgress | None,
    ) -> None:
        engine = limits.engine.model_copy(update={"max_attempts": attempts})
        budget = limits.study_budget()
        self.line = Line((), journal, engine, budget=budget, on_progress=on_progress)
        self._players, self._n_rooms = Players(self.line), 2 * engine.in_flight
        self._sides = {"rejected": pairs.rejected}
        if pairs.chosen is not None:
            self._sides["chosen"] = pairs.chosen
        self._made: dict[int, tuple[str | Fault, str | Fault]] = {}

    async def both(self, rows: Sequence[TherapistRow]) -> list[tuple[str | Fault, str | Fault]]:
        """Chosen and rejected words of every row, as far as the run came."""
        async with self.line as line:
            opened = {side: await self._players.open(one) for side, one in self._sides.items()}
            self._players.book_earlier(lambda key: self._sides.get(key.split("|")[-2]))
            line.meter.n_total = len(rows) * len(opened)
            room = asyncio.Semaphore(self._n_rooms)
            for number, row in enumerate(rows):
                line.start(self._pair(number, row, opened, room))
        return [self._made[number] for number in sorted(self._made)]

    async def _pair(
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
            self._made[number] = chosen, await self._words(row, "rejected", opened["rejected"])

    async def _words(self, row: TherapistRow, side: str, opened: OpenPlayer) -> str | Fault:
        """What a model says at this place, in the form of the training target."""
        form, player = row.casting.arm.reasoning, self._sides[side]

        def fault_of(reply: Reply) -> Fault | None:
            found = _content(reply, form)
            return found if isinstance(found, Fault) else None

        # what its tokens cost changes no word
        unpriced = player.model_copy(update={"price_in": None, "price_out": None})
        asked = json.dumps([list(row.prompt), unpriced.model_dump(mode="json")], sort_keys=True)
        mark = hashlib.sha256(asked.encode()).hexdigest()[:12]
        seed = seed_of("pair", row.session.seed, row.turn, side)
        scene = Scene("therapist", row.casting, row.history, seed, row.turn)
        outcome = await self._players.ask(
            Call(
                key=f"{row.session.id}|{row.turn}|{side}|{mark}",
                player=opened,
                scene=scene,
                messages=row.prompt,
                sampling=player.sampling(seed),
                check=fault_of,
            )
        )
        if outcome.reply is None or not outcome.is_accepted:
            assert outcome.fault is not None, "what is not accepted has a fault"
            return outcome.fault
        return _content(outcome.reply, form)


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
