"""The dry run of a study: calls, tokens and price by model, before anything is sent.

    estimate_study(load_study(path)).n_requests

Every session is counted to its most turns and no draft as rejected, so that a study with an end
token mostly takes less. Lengths of replies are assumed, below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cbtqa.llm.cost import MESSAGE_TOKENS, Estimate, sum_estimates, time_of
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.records import Usage
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.messages import SessionView, plan_courses, tokens_of
from cbtqa.simulation.playing.players import price_of
from cbtqa.simulation.profiles import choose_profiles
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import Player, StudySettings

THERAPIST_TOKENS, REASONING_TOKENS, PATIENT_TOKENS = 80, 150, 50
"""Of one turn: one to four sentences, 50-150 words of reasoning, one to five sentences; assumed."""
VERDICT_TOKENS, STATE_TOKENS, INSTRUCTION_TOKENS = 40, 350, 450
"""Of a supervisor's answer, of the notes on a session, and of either's instruction; assumed."""
PART_TOKENS, PART_INSTRUCTION_TOKENS = 600, 1_000
"""Of one part of a written session, and of the instruction for it; assumed."""


def estimate_study(
    study: StudySettings, out: Path | None = None, limits: Limits | None = None
) -> Estimate:
    """What a study would still send at most, by model, without sending anything.

    Raises:
        ConfigError, DataError: the study or its patients are not what they should be.
    """
    profiles = choose_profiles(study.patients, study.seed)
    spent: dict[str, tuple[Player, int, Usage]] = {}
    courses = plan_courses(study, profiles)
    for course in courses:
        for player, n_calls, usage in _session(course):
            _, n, so_far = spent.get(player.name, (player, 0, Usage()))
            n_in = so_far.prompt_tokens + study.sessions * usage.prompt_tokens
            n_out = so_far.completion_tokens + study.sessions * usage.completion_tokens
            total = Usage(prompt_tokens=n_in, completion_tokens=n_out)
            spent[player.name] = (player, n + study.sessions * n_calls, total)
    n_done = count_done(StudyFolder(out).journal_path, study.attempts) if out else 0
    limits = limits or Limits()
    # the turns of a course come one after the other, so no more than its courses are in flight
    limits = limits.model_copy(update={"in_flight": min(limits.in_flight, len(courses))})
    n_sessions = len(courses) * study.sessions
    return estimate_players("sessions", n_sessions, list(spent.values()), n_done, limits)


def estimate_players(
    items: str,
    n_items: int,
    spent: Sequence[tuple[Player, int, Usage]],
    n_done: int,
    limits: Limits,
) -> Estimate:
    """What is left to send, by model, of calls and tokens at most.

    Args:
        n_done: calls of all players that the journal holds; they count for each in equal share.
    """
    n_calls = sum(n for _, n, _ in spent)
    left = max(0.0, 1 - n_done / n_calls) if n_calls else 0.0
    parts = [_priced(items, player, n, usage, left, limits) for player, n, usage in spent]
    return sum_estimates(items, n_items, 0, parts).model_copy(update={"n_done": n_done})


def _session(view: SessionView) -> Iterator[tuple[Player, int, Usage]]:
    """Each player of one session: calls and tokens."""
    study, arm = view.study, view.arm
    if study.written:
        yield arm.therapist, *_written_session(study.sessions > 1)
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
    yield arm.therapist, n, _usage(n * head + own, n * (THERAPIST_TOKENS + extra))
    head = tokens_of(view.patient_messages((), None))
    yield study.patient, n, _usage(n * head + seen, n * PATIENT_TOKENS)
    for reader in (study.supervisor, study.validator):
        if reader is not None:
            yield reader, n, _usage(n * INSTRUCTION_TOKENS + history, n * VERDICT_TOKENS)
    if study.summariser is not None and study.sessions > 1:
        yield study.summariser, 1, _usage(INSTRUCTION_TOKENS + n * spoken, STATE_TOKENS)


def _written_session(hands_over: bool) -> tuple[int, Usage]:
    """Calls and tokens of a session written in parts."""
    n_parts = len(cbt_course().parts)
    before = PART_TOKENS * n_parts * (n_parts - 1) // 2
    state = STATE_TOKENS if hands_over else 0
    n_in = n_parts * (PART_INSTRUCTION_TOKENS + state) + before
    return n_parts, _usage(n_in, n_parts * PART_TOKENS + STATE_TOKENS)


def _usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _priced(
    items: str, player: Player, n_calls: int, usage: Usage, left: float, limits: Limits
) -> Estimate:
    price, n_calls = price_of(player), round(left * n_calls)
    usage = _usage(round(left * usage.prompt_tokens), round(left * usage.completion_tokens))
    seconds, bound_by = 0.0, ""
    if player.endpoint is not None:
        seconds, bound_by = time_of(n_calls, usage, limits.in_flight, limits.rpm, limits.tpm)
    return Estimate(
        items=items,
        name=player.name,
        n_requests=n_calls,
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
