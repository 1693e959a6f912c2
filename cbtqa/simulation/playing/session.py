"""One session, turn by turn, until it ends for a reason that is kept.

    session = await play_session(casting, replicate=1, cast=cast, players=players)
    session.stop_reason        # ended, max_turns, context, no_answer, refused, endpoint

A session ends when the therapist writes the end token (after the least number of turns), at the
most turns, or when the next request would not fit the context budget. Phrases of leave-taking end
nothing: in the logs of arXiv 2412.00251, 99 sessions were ended by the words "take care of ...".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cbtqa
from cbtqa.llm.chat import Fault, Message, Reply, Sampling
from cbtqa.llm.journal import Outcome, State
from cbtqa.prompts import Prompt
from cbtqa.records import Provenance, Reason, Session, StopReason, Turn, TurnMark, Usage
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.events import load_events, plan_events
from cbtqa.simulation.playing.messages import (
    Casting,
    Scene,
    Spoken,
    answer_is_cut,
    filled,
    read_patient,
    read_therapist,
    retold,
    tokens_of,
    whole_sentences,
    wording,
)
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players, endpoint_of
from cbtqa.simulation.playing.supervision import Verdict, ask_verdict
from cbtqa.simulation.sessions import session_id
from cbtqa.simulation.study import Player

Role = Literal["patient", "therapist"]
_TOO_LONG = re.compile(r"context|too long|maximum.{0,20}(?:length|tokens)", re.IGNORECASE)


@dataclass(frozen=True)
class Cast:
    """The players of one arm."""

    therapist: OpenPlayer
    patient: OpenPlayer
    supervisor: OpenPlayer | None = None
    validator: OpenPlayer | None = None
    summariser: OpenPlayer | None = None


@dataclass(frozen=True)
class _Line:
    """What was said in a turn, and what the supervisor thought of it."""

    spoken: Spoken
    verdict: Verdict | None
    n_revisions: int

    def turn(self, role: Role, event: str | None, *, is_early: bool = False) -> Turn:
        marks, complaint = list(self.spoken.marks), None
        if self.verdict is not None and not self.verdict.is_accepted:
            marks.append("not_accepted" if self.verdict.feedback else "unsupervised")
            complaint = self.verdict.feedback or self.verdict.trouble
        return Turn(
            role=role,
            text=self.spoken.text,
            reasoning=self.spoken.reasoning,
            event=event,
            marks=(*marks, *(["end_too_early"] if is_early else [])),
            complaint=complaint,
            n_revisions=self.n_revisions,
        )


def session_seed(casting: Casting, replicate: int) -> int:
    """The seed of a session: the same in every arm."""
    return seed_of("session", casting.study.seed, casting.profile.id, casting.number, replicate)


async def play_session(casting: Casting, replicate: int, cast: Cast, players: Players) -> Session:
    """Plays a session to its end.

    Raises:
        GateClosedError: the run is stopping.
        EndpointError: an endpoint refuses every question.
    """
    return await _Played(casting, replicate, cast, players).play()


class _Played:
    """A session while it is played."""

    def __init__(self, casting: Casting, replicate: int, cast: Cast, players: Players) -> None:
        self._casting, self._replicate, self._cast = casting, replicate, cast
        self._players = players
        study, arm = casting.study, casting.arm
        self._id = session_id(arm.name, casting.profile.id, casting.number, replicate)
        self._seed = session_seed(casting, replicate)
        self._turns: list[Turn] = []
        self._stop: tuple[StopReason, str] | None = None
        self._spent: dict[Role, list[Outcome]] = {"patient": [], "therapist": []}
        self._events = plan_events(
            study.events,
            seed=study.seed,
            profile_id=casting.profile.id,
            number=casting.number,
            replicate=replicate,
            arm=arm.name,
        )

    async def play(self) -> Session:
        n_turn = 0
        while self._stop is None:
            n_turn += 1
            await self._patient_turn(n_turn)
            if self._stop is None:
                await self._therapist_turn(n_turn)
        reason, detail = self._stop
        casting, study = self._casting, self._casting.study
        return Session(
            id=self._id,
            arm=casting.arm.name,
            profile_id=casting.profile.id,
            number=casting.number,
            replicate=self._replicate,
            phase=casting.phase,
            turns=tuple(self._turns),
            stop_reason=reason,
            stop_detail=detail,
            seed=self._seed,
            provenance=provenance_of(
                casting.arm.therapist,
                casting.therapist_prompt,
                self._seed,
                self._spent["therapist"],
            ),
            patient_provenance=provenance_of(
                study.patient, casting.patient_prompt, self._seed, self._spent["patient"]
            ),
        )

    # --- turns -----------------------------------------------------------------------------------

    async def _patient_turn(self, number: int) -> None:
        event = self._events.get(number)
        note = load_events(self._casting.study.events.set)[event].note if event else None
        view = self._casting.patient_messages(self._turns, note)
        line = await self._line("patient", number, view, event)
        if line is not None:
            self._turns.append(line.turn("patient", event))

    async def _therapist_turn(self, number: int) -> None:
        study = self._casting.study
        whole = self._casting.therapist_messages(self._turns)
        view = self._casting.fitting(whole)
        if view is None:
            need = tokens_of(whole) + self._casting.arm.therapist.max_tokens
            self._stop = ("context", f"about {need} of {study.context_tokens} tokens")
            return
        line = await self._line("therapist", number, view, None)
        if line is None:
            return
        asks_to_end, has_words = line.spoken.asks_to_end, bool(line.spoken.text)
        is_early = asks_to_end and number < study.turns.min
        if not has_words and is_early:
            self._stop = ("no_answer", "therapist: nothing but the end token, and too early")
        elif has_words:
            self._turns.append(line.turn("therapist", None, is_early=is_early))
        if asks_to_end and not is_early:
            self._stop = ("ended", "")
        elif self._stop is None and number >= study.turns.max:
            self._stop = ("max_turns", f"{number} turns")

    # --- one line, supervised where the study says so --------------------------------------------

    async def _line(
        self, role: Role, number: int, messages: list[Message], event: str | None
    ) -> _Line | None:
        """What is said in a turn; None once the session is stopped."""
        view, kept = messages, None
        for revision in range(self._casting.study.revisions + 1):
            scene = Scene(
                part=role,
                casting=self._casting,
                turns=tuple(self._turns),
                seed=seed_of(self._seed, role, number),
                turn=number,
                event=event,
                revision=revision,
            )
            spoken = await self._speak(role, scene, view)
            if isinstance(spoken, Fault):
                if kept is not None and spoken.reason is not Reason.ENDPOINT:
                    break  # the draft before is kept, marked as not accepted
                self._stop = (_stop_of(spoken), f"{role}: {spoken.detail}")
                return None
            verdict = await self._verdict(scene, spoken)
            if isinstance(verdict, Fault):
                self._stop = (_stop_of(verdict), f"supervisor: {verdict.detail}")
                return None
            kept = _Line(spoken, verdict, revision)
            if verdict is None or verdict.is_accepted or not verdict.feedback:
                break
            sentence = wording()["revise" if role == "therapist" else "revise_patient"]
            view = retold(messages, spoken.text, filled(sentence, complaint=verdict.feedback))
        return kept

    async def _speak(self, role: Role, scene: Scene, view: Sequence[Message]) -> Spoken | Fault:
        player = self._player(role)
        form = self._casting.arm.reasoning

        def read(reply: Reply) -> Spoken | Fault:
            return read_therapist(reply, form) if role == "therapist" else read_patient(reply)

        def fault_of(reply: Reply) -> Fault | None:
            found = read(reply)
            return found if isinstance(found, Fault) else None

        outcome = await self._players.ask(
            Call(
                key=self._key(scene),
                player=self._cast.therapist if role == "therapist" else self._cast.patient,
                scene=scene,
                messages=view,
                sampling=self._sampling(player, scene),
                check=fault_of,
                keeps_cut=self._casting.study.cut_replies == "keep",
            )
        )
        self._spent[role].append(outcome)
        if outcome.is_accepted and outcome.reply is not None:
            return read(outcome.reply)
        return self._kept_cut(outcome, read(outcome.reply)) if outcome.reply else _fault_in(outcome)

    def _kept_cut(self, outcome: Outcome, spoken: Spoken | Fault) -> Spoken | Fault:
        """A cut reply up to its last whole sentence, where the study keeps such."""
        assert outcome.reply is not None
        is_kept = self._casting.study.cut_replies == "keep" and answer_is_cut(outcome.reply)
        if not is_kept or isinstance(spoken, Fault):
            return _fault_in(outcome)
        marks: tuple[TurnMark, ...] = (*spoken.marks, "cut")
        return replace(spoken, text=whole_sentences(spoken.text), marks=marks)

    async def _verdict(self, scene: Scene, spoken: Spoken) -> Verdict | Fault | None:
        """The verdict on a draft; None where nobody reads it, a fault when the endpoint failed."""
        is_therapist = scene.part == "therapist"
        study = self._casting.study
        reader = self._cast.supervisor if is_therapist else self._cast.validator
        player = study.supervisor if is_therapist else study.validator
        if reader is None or player is None:
            return None
        part: Literal["supervisor", "validator"] = "supervisor" if is_therapist else "validator"
        reading = replace(scene, part=part, draft=spoken.text)
        return await ask_verdict(
            self._players, reader, player, reading, spoken.reasoning, self._key(reading)
        )

    # --- odds and ends ---------------------------------------------------------------------------

    def _key(self, scene: Scene) -> str:
        parts = (self._casting.fingerprint, f"{scene.part}{scene.turn}", f"v{scene.revision}")
        return "|".join((self._id, *parts))

    def _player(self, role: Role) -> Player:
        return self._casting.arm.therapist if role == "therapist" else self._casting.study.patient

    def _sampling(self, player: Player, scene: Scene) -> Sampling:
        return player.sampling(seed_of(scene.seed, scene.revision))


def provenance_of(
    player: Player, prompt: Prompt, seed: int | None, outcomes: Sequence[Outcome]
) -> Provenance:
    """Where the words of a player in one session come from; rules are no source for training."""
    is_rules = player.scripted is not None
    usage = Usage(
        prompt_tokens=sum(one.usage.prompt_tokens for one in outcomes),
        completion_tokens=sum(one.usage.completion_tokens for one in outcomes),
    )
    hosts = [one.reply.host for one in outcomes if one.reply and one.reply.host]
    if not hosts and player.endpoint:
        hosts = [endpoint_of(player).host]  # nothing was answered, or by an earlier version
    made_at = [one.reply.created_at for one in outcomes if one.reply and one.reply.created_at]
    return Provenance(
        model=player.name,
        endpoint_host=hosts[-1] if hosts else None,
        prompt_id=None if is_rules else prompt.name,
        prompt_sha256=None if is_rules else prompt.sha256,
        sampling={} if is_rules else player.sampling(None).described(),
        seed=seed,
        usage=None if is_rules else usage,
        is_training_source=not is_rules,
        version=cbtqa.__version__,
        created_at=max(made_at, default=None),
    )


def _fault_in(outcome: Outcome) -> Fault:
    fault = outcome.fault or Fault(Reason.EMPTY, "no reply")
    if outcome.state is State.ENDPOINT:
        return Fault(Reason.ENDPOINT, fault.detail)
    return fault


def _stop_of(fault: Fault) -> StopReason:
    if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
        return "refused"
    if fault.reason is Reason.BAD_REQUEST:
        return "context" if _TOO_LONG.search(fault.detail) else "refused"
    return "endpoint" if fault.reason is Reason.ENDPOINT else "no_answer"
