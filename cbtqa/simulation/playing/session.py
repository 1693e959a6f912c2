"""One session, turn by turn, until it ends for a reason that is kept.

    session = await PlayedSession(view, arm_players, players).play()
    session.stop_reason        # ended, max_turns, context, no_answer, refused, endpoint

A session ends when the therapist writes the end token (after the least number of turns), when both
sides have said goodbye one after the other, at the most turns, or when the next request would not
fit the context budget. One side's leave-taking ends nothing: in the logs of arXiv 2412.00251, 99
sessions were ended by the words "take care of ...".

A turn with a fault (`cbtqa.simulation.marks`) is asked again with the fault named, at most
`repairs` times; then it is kept and marked. The built-in rules are asked once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cbtqa
from cbtqa.endings import Ending, ending_of
from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.journal import Outcome
from cbtqa.prompts import Prompt
from cbtqa.records import Provenance, Reason, Session, StopReason, Turn, Usage
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.marks import TurnFault, faults_of_last, takes_leave
from cbtqa.simulation.playing.events import load_events, plan_events
from cbtqa.simulation.playing.messages import (
    SessionView,
    Spoken,
    TurnContext,
    fault_of_words,
    filled,
    read_patient,
    read_therapist,
    tokens_of,
    whole_sentences,
    with_complaint,
    wording,
)
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players, endpoints_of
from cbtqa.simulation.playing.supervision import Verdict, ask_guard, ask_verdict
from cbtqa.simulation.study import Player

Role = Literal["patient", "therapist"]
_TOO_LONG = re.compile(r"context|too long|maximum.{0,20}(?:length|tokens)", re.IGNORECASE)


@dataclass(frozen=True)
class ArmPlayers:
    therapist: OpenPlayer
    patient: OpenPlayer
    supervisor: OpenPlayer | None
    validator: OpenPlayer | None
    summariser: OpenPlayer | None
    guard: OpenPlayer | None


@dataclass(frozen=True)
class _Draft:
    """What was said in a turn, and the verdict on it."""

    spoken: Spoken
    verdict: Verdict | None
    n_revisions: int
    faults: tuple[TurnFault, ...] = ()
    is_unguarded: bool = False
    """The guard gave no verdict on it."""

    def turn(self, role: Role, event: str | None, *, is_early: bool = False) -> Turn:
        marks, complaint = [*self.spoken.marks, *(one.mark for one in self.faults)], None
        if self.is_unguarded:
            marks.append("unguarded")
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


class PlayedSession:
    """A session while it is played."""

    def __init__(self, view: SessionView, arm_players: ArmPlayers, players: Players) -> None:
        self._view, self._study = view, view.study
        self._arm_players, self._players = arm_players, players
        self._turns: list[Turn] = []
        self._stop: tuple[StopReason, str] | None = None
        self._outcomes: dict[Role, list[Outcome]] = {"patient": [], "therapist": []}
        self._events = plan_events(
            view.study.events,
            seed=view.study.seed,
            profile_id=view.profile.id,
            number=view.number,
            replicate=view.replicate,
            arm=view.arm.name,
        )

    async def play(self) -> Session:
        """Plays to the end.

        Raises:
            GateClosedError: the run is stopping.
            EndpointError: an endpoint refuses every question.
        """
        n_turn = 0
        while self._stop is None:
            n_turn += 1
            await self._patient_turn(n_turn)
            self._end_after_goodbyes(n_turn)
            if self._stop is None:
                await self._therapist_turn(n_turn)
                self._end_after_goodbyes(n_turn + 1)
        view = self._view
        asked, player = self._outcomes, view.arm.therapist
        therapist = provenance_of(player, view.therapist_prompt, view.seed, asked["therapist"])
        player = self._study.patient
        patient = provenance_of(player, view.patient_prompt, view.seed, asked["patient"])
        return view.session(self._turns, self._stop, therapist, patient_provenance=patient)

    def _end_after_goodbyes(self, n_turn: int) -> None:
        """Ends the session where the last two turns say goodbye, after its least turns."""
        last = self._turns[-2:]
        is_over = len(last) == 2 and all(takes_leave(turn.text) for turn in last)
        if self._stop is None and is_over and n_turn > self._study.turns.min:
            self._stop = ("ended", "both have said goodbye")

    async def _patient_turn(self, number: int) -> None:
        event = self._events.get(number)
        note = load_events(self._study.events.set)[event].note if event else None
        messages = self._view.patient_messages(self._turns, note)
        draft = await self._supervised("patient", number, messages, event)
        if draft is not None:
            self._turns.append(draft.turn("patient", event))

    async def _therapist_turn(self, number: int) -> None:
        whole = self._view.therapist_messages(self._turns)
        messages = self._view.fitting(whole)
        if messages is None:
            need = tokens_of(whole) + self._view.arm.therapist.max_tokens
            self._stop = ("context", f"about {need} of {self._study.context_tokens} tokens")
            return
        draft = await self._supervised("therapist", number, messages, None)
        if draft is None:
            return
        asks_to_end, has_words = draft.spoken.asks_to_end, bool(draft.spoken.text)
        is_early = asks_to_end and number < self._study.turns.min
        if not has_words and is_early:
            self._stop = ("no_answer", "therapist: nothing but the end token, and too early")
        elif has_words:
            self._turns.append(draft.turn("therapist", None, is_early=is_early))
        if asks_to_end and not is_early:
            self._stop = ("ended", "")
        elif self._stop is None and number >= self._study.turns.max:
            self._stop = ("max_turns", f"{number} turns")

    async def _supervised(
        self, role: Role, number: int, messages: list[Message], event: str | None
    ) -> _Draft | None:
        """What is said in a turn, revised where a supervisor asks; None once the session stops."""
        asked, kept, n_repairs = messages, None, 0
        # what only this player is given, and nobody may say
        private = [load_events(self._study.events.set)[event].note] if event else []
        if role == "therapist" and (note := self._view.turn_note(self._turns)):
            private.append(note)
        for revision in range(self._study.revisions + self._study.repairs + 1):
            context = TurnContext(
                part=role,
                view=self._view,
                turns=tuple(self._turns),
                seed=seed_of(self._view.seed, role, number),
                turn=number,
                event=event,
                revision=revision,
            )
            spoken = await self._speak(role, context, asked, private)
            if isinstance(spoken, Fault):
                if kept is not None and spoken.reason is not Reason.ENDPOINT:
                    break  # the draft before is kept, marked as not accepted
                self._stop = (_stop_of(spoken), f"{role}: {spoken.detail}")
                return None
            faults = self._faults(role, spoken, event)
            kept = _Draft(spoken, None, revision, faults)
            may_repair = n_repairs < self._study.repairs
            if not (faults and may_repair):  # else it is asked again anyhow
                guarded = await self._guarded(context, kept)
                if isinstance(guarded, Fault):
                    self._stop = (_stop_of(guarded), f"guard: {guarded.detail}")
                    return None
                kept, faults = guarded, guarded.faults
            if faults and may_repair:
                n_repairs += 1
                complaint = "; ".join(map(str, faults))
                asked = with_complaint(
                    messages, spoken.text, filled(wording()["repair"], complaint=complaint)
                )
                private.append(complaint)
                continue
            verdict = await self._verdict(context, spoken)
            if isinstance(verdict, Fault):
                self._stop = (_stop_of(verdict), f"supervisor: {verdict.detail}")
                return None
            kept = replace(kept, verdict=verdict)
            is_last = revision - n_repairs >= self._study.revisions
            if verdict is None or verdict.is_accepted or not verdict.feedback or is_last:
                break
            sentence = wording()["revise" if role == "therapist" else "revise_patient"]
            complaint = filled(sentence, complaint=verdict.feedback)
            asked = with_complaint(messages, spoken.text, complaint)
            private.append(verdict.feedback)
        return kept

    def _faults(self, role: Role, spoken: Spoken, event: str | None) -> tuple[TurnFault, ...]:
        """What a draft should not say; the built-in rules know one way to say it."""
        player = self._view.arm.therapist if role == "therapist" else self._study.patient
        if player.scripted is not None or not spoken.text:
            return ()
        turn, limits = Turn(role=role, text=spoken.text, event=event), self._study.turns
        found = faults_of_last(
            [*self._turns, turn],
            name=self._view.profile.name,
            least=limits.min if self._study.end_token else limits.max,
            is_single=self._study.sessions == 1,
            country=next(iter(self._view.profile.attributes.get("country", ())), None),
        )
        return tuple(found)

    async def _guarded(self, context: TurnContext, draft: _Draft) -> _Draft | Fault:
        """A draft with what the guard names in it; a fault when its endpoint failed."""
        role, guard, text = context.part, self._arm_players.guard, draft.spoken.text
        player = self._view.arm.therapist if role == "therapist" else self._study.patient
        if guard is None or player.scripted is not None or not text:
            return draft
        turn = Turn(role="therapist" if role == "therapist" else "patient", text=text)
        limits = self._study.turns
        is_open = context.turn < (limits.min if self._study.end_token else limits.max)
        found = await ask_guard(self._players, guard, context, turn, is_open=is_open)
        if isinstance(found, Fault):
            is_gone = found.reason is Reason.ENDPOINT
            return found if is_gone else replace(draft, is_unguarded=True)
        known = {one.mark for one in draft.faults}
        new = (one for one in found if one.mark not in known)
        return replace(draft, faults=(*draft.faults, *new))

    async def _speak(
        self,
        role: Role,
        context: TurnContext,
        messages: Sequence[Message],
        private: Sequence[str],
    ) -> Spoken | Fault:
        is_therapist, form = role == "therapist", self._view.arm.reasoning
        keeps_cut = self._study.cut_replies == "keep"

        def read(reply: Reply) -> Spoken | Fault:
            found = read_therapist(reply, form) if is_therapist else read_patient(reply)
            fault = None if isinstance(found, Fault) else fault_of_words(found.text, private)
            return fault or found

        spoken, outcome = await self._players.ask(
            Call(
                key=context.key,
                player=self._arm_players.therapist if is_therapist else self._arm_players.patient,
                context=context,
                messages=messages,
                seed=seed_of(context.seed, context.revision),
                read=read,
                keeps_cut=keeps_cut,
                is_spoken=True,
            )
        )
        self._outcomes[role].append(outcome)
        reply = outcome.reply
        is_cut = reply is not None and ending_of(reply.finish_reason) is Ending.CUT
        if isinstance(spoken, Fault) and keeps_cut and reply and is_cut:
            cut = read(reply)
            if isinstance(cut, Spoken):
                return replace(cut, text=whole_sentences(cut.text), marks=(*cut.marks, "cut"))
        return spoken

    async def _verdict(self, context: TurnContext, spoken: Spoken) -> Verdict | Fault | None:
        """The verdict on a draft; None where nobody reads it, a fault when the endpoint failed."""
        is_therapist = context.part == "therapist"
        reader = self._arm_players.supervisor if is_therapist else self._arm_players.validator
        if reader is None:
            return None
        part: Literal["supervisor", "validator"] = "supervisor" if is_therapist else "validator"
        context = replace(context, part=part, draft=spoken.text)
        return await ask_verdict(self._players, reader, context, spoken.reasoning)


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
    if not hosts:
        hosts = [one.host for one in endpoints_of(player)][
            :1
        ]  # nothing was answered, or by an earlier version
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


def _stop_of(fault: Fault) -> StopReason:
    if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
        return "refused"
    if fault.reason is Reason.BAD_REQUEST:
        return "context" if _TOO_LONG.search(fault.detail) else "refused"
    return "endpoint" if fault.reason is Reason.ENDPOINT else "no_answer"
