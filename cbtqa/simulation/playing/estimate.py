"""The dry run of a study: calls, tokens and price by model, before anything is sent.

    estimate_study(load_study(path)).n_requests

Every session is counted to its most turns and no draft as rejected, so that a study with an end
token mostly takes less. Lengths of replies are assumed, below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtqa.llm.cost import MESSAGE_TOKENS, Estimate, estimate_tokens, sum_estimates, time_of
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.records import Usage
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.guard import SEEN_AGAIN
from cbtqa.simulation.playing.messages import SessionView, plan_courses, tokens_of
from cbtqa.simulation.playing.players import price_of
from cbtqa.simulation.profiles import choose_profiles
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import Player, StudySettings

THERAPIST_TOKENS, REASONING_TOKENS, PATIENT_TOKENS = 80, 150, 50
"""Of one turn: one to four sentences, 50-150 words of reasoning, one to five sentences; assumed."""
VERDICT_TOKENS, STATE_TOKENS, FILLED_TOKENS = 40, 350, 280
"""Of a supervisor's answer, of the notes on a session, of what fills either's prompt; assumed."""
PART_TOKENS, PART_FILLED_TOKENS = 600, 730
"""Of one part of a written session, and of what fills the prompt for it; assumed."""


@dataclass(frozen=True)
class Calls:
    """Calls to one player and their tokens."""

    player: Player
    n: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.n, self.prompt_tokens, self.completion_tokens

    def times(self, factor: float) -> Calls:
        return Calls(self.player, *(round(factor * number) for number in self.numbers))


def estimate_study(
    study: StudySettings, out: Path | None = None, limits: Limits | None = None
) -> Estimate:
    """What a study would still send at most, by model, without sending anything.

    Raises:
        ConfigError, DataError: the study or its patients are not what they should be.
    """
    courses = plan_courses(study, choose_profiles(study.patients, study.seed))
    by_model: dict[str, list[Calls]] = {}
    for view in courses:
        for calls in _session(view):
            by_model.setdefault(calls.player.name, []).append(calls.times(study.sessions))
    sums = [
        Calls(found[0].player, *map(sum, zip(*(one.numbers for one in found), strict=True)))
        for found in by_model.values()
    ]
    n_done = count_done(StudyFolder(out).journal_path, study.attempts) if out else 0
    n_items, limits = len(courses) * study.sessions, limits or Limits()
    # the turns of a course come one after the other, so no more than its courses are in flight
    return estimate_players("sessions", n_items, sums, n_done, limits, most=len(courses))


def estimate_players(
    items: str, n_items: int, planned: Sequence[Calls], n_done: int, limits: Limits, *, most: int
) -> Estimate:
    """What is left to send, by model, of calls and tokens at most.

    Args:
        n_done: calls of all players that the journal holds; they count for each in equal share.
        most: calls that can be in flight at a time, however many servers there are.
    """
    n_calls = sum(calls.n for calls in planned)
    left = max(0.0, 1 - n_done / n_calls) if n_calls else 0.0
    parts = [_priced(items, calls.times(left), limits, most) for calls in planned]
    return sum_estimates(items, n_items, 0, parts).model_copy(update={"n_done": n_done})


def _session(view: SessionView) -> Iterator[Calls]:
    study, arm = view.study, view.arm
    if study.written:
        n = len(cbt_course().parts)
        instruction = _instruction(view, "course_part", PART_FILLED_TOKENS)
        instruction += STATE_TOKENS if study.sessions > 1 else 0
        n_in = n * instruction + PART_TOKENS * n * (n - 1) // 2
        yield Calls(arm.therapist, n, n_in, n * PART_TOKENS + STATE_TOKENS)
        return
    n = study.turns.max
    extra = REASONING_TOKENS if arm.reasoning == "cot" else 0
    kept = extra if arm.history == "answers_and_reasoning" else 0
    spoken = THERAPIST_TOKENS + PATIENT_TOKENS + 2 * MESSAGE_TOKENS
    # before turn k there are k - 1 exchanges: 0 + 1 + ... + (n - 1) over the session
    history = spoken * n * (n - 1) // 2
    seen = history if study.patient_sees is None else min(history, n * study.patient_sees * spoken)
    own = history + kept * n * (n - 1) // 2 + n * (PATIENT_TOKENS + MESSAGE_TOKENS)
    head = tokens_of(view.therapist_messages(()))
    yield Calls(arm.therapist, n, n * head + own, n * (THERAPIST_TOKENS + extra))
    head = tokens_of(view.patient_messages((), None))
    yield Calls(study.patient, n, n * head + seen, n * PATIENT_TOKENS)
    readers = {"session_supervisor": study.supervisor, "session_patient_check": study.validator}
    for name, reader in readers.items():
        if reader is not None:
            yield Calls(reader, n, n * _instruction(view, name) + history, n * VERDICT_TOKENS)
    if study.guard is not None:
        n_asks = n * sum(player.scripted is None for player in (arm.therapist, study.patient))
        n_in = _instruction(view, "session_guard") + SEEN_AGAIN * spoken // 2
        yield Calls(study.guard, n_asks, n_asks * n_in, n_asks * VERDICT_TOKENS)
    if study.summariser is not None and study.sessions > 1:
        n_in = _instruction(view, "session_summary") + n * spoken
        yield Calls(study.summariser, 1, n_in, STATE_TOKENS)


def _instruction(view: SessionView, name: str, n_filled: int = FILLED_TOKENS) -> int:
    """Tokens of a prompt with what fills it, without the transcript."""
    prompt = view.shipped_prompt(name)
    templates = (prompt.system.template, prompt.user.template)
    return sum(map(estimate_tokens, templates)) + n_filled


def _priced(items: str, calls: Calls, limits: Limits, most: int) -> Estimate:
    price, player = price_of(calls.player), calls.player
    usage = Usage(prompt_tokens=calls.prompt_tokens, completion_tokens=calls.completion_tokens)
    seconds, bound_by = 0.0, ""
    if player.endpoints:
        in_flight = min(limits.in_flight * len(player.endpoints), most)
        seconds, bound_by = time_of(calls.n, usage, in_flight, limits.rpm, limits.tpm)
    return Estimate(
        items=items,
        name=player.name,
        n_requests=calls.n,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        counted_by="estimate, every session to its most turns",
        length_from="assumed (docs/simulation.md)",
        cost=price.of(usage) if price else None,
        currency=price.currency if price and price.of(usage) else "",
        price_as_of=price.as_of if price else "",
        seconds=seconds,
        bound_by=bound_by,
    )


def count_done(path: Path, attempts: int) -> int:
    """Calls in a journal for which nothing is left to send; 0 where there is none."""
    if not path.exists():
        return 0
    with Journal(path, read_only=True) as journal:
        return sum(1 for _ in journal.done_keys(attempts))
