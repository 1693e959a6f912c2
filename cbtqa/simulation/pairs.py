"""Preference pairs: two models answer one and the same prompt.

    pairs = make_pairs(rows, study.pairs, Path("export/pairs.sqlite"), limits)

A pair is dropped, and counted, when a side gives no usable answer or both say the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cbtqa.errors import IncompleteRunError
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import GateClosedError
from cbtqa.llm.progress import Meter, Progress
from cbtqa.records import Reason, Turn
from cbtqa.simulation.desk import Call, Desk
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.messages import read_therapist, turn_content
from cbtqa.simulation.rows import TherapistRow
from cbtqa.simulation.run import RunLimits
from cbtqa.simulation.scenes import Scene
from cbtqa.simulation.study import Pairs, Player, ReasoningForm
from cbtqa.simulation.voices import Exchange, Purse

Pair = tuple[TherapistRow, str, str]
"""Row, chosen words, rejected words."""


def make_pairs(
    rows: Sequence[TherapistRow],
    pairs: Pairs,
    journal_path: Path,
    limits: RunLimits,
    dropped: Counter[str],
    *,
    attempts: int = 3,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Pair]:
    """The pairs in the order of the rows; paid answers are kept in the journal.

    Raises:
        IncompleteRunError: stopped early; the same call continues.
        EndpointError: an endpoint refuses every request.
    """
    with Journal(journal_path, {"journal": "preference pairs"}) as journal:
        asking = _Asking(pairs, journal, limits, attempts, on_progress)
        sides = asyncio.run(asking.both(rows))
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
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._pairs, self._journal, self._limits = pairs, journal, limits
        self._meter = Meter(None, None, journal.totals())
        self._desk = Desk(journal, self._meter, attempts)
        self._on_progress = on_progress

    async def both(self, rows: Sequence[TherapistRow]) -> list[tuple[str | Fault, str | Fault]]:
        """Chosen and rejected words of every row."""
        purse = Purse(self._limits.budget, self._limits.budget_tokens)
        async with Exchange(self._journal, self._limits.engine, self._meter, purse) as exchange:
            exchange.on_stop = self._desk.stop
            players = {"chosen": self._pairs.chosen, "rejected": self._pairs.rejected}
            self._voices = {
                side: await exchange.voice(player)
                for side, player in (
                    ("chosen", self._pairs.chosen),
                    ("rejected", self._pairs.rejected),
                )
                if player is not None
            }
            exchange.book_earlier(lambda key: players.get(key.split("|")[-2]))
            self._meter.n_total = len(rows) * (2 if self._pairs.chosen else 1)
            room = asyncio.Semaphore(2 * self._limits.engine.in_flight)
            work = [asyncio.create_task(self._pair(row, room)) for row in rows]
            exchange.on_second_stop = lambda: [one.cancel() for one in work]
            found = await asyncio.gather(*work, return_exceptions=True)
            await self._desk.settle()
        if exchange.is_interrupted:
            raise KeyboardInterrupt
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, GateClosedError):
                raise one
        if exchange.stop_reason is not None:
            raise IncompleteRunError(
                exchange.stop_reason, hint="give the same command again to continue"
            )
        return [one for one in found if not isinstance(one, BaseException)]

    async def _pair(
        self, row: TherapistRow, room: asyncio.Semaphore
    ) -> tuple[str | Fault, str | Fault]:
        async with room:
            chosen: str | Fault = row.completion
            if self._pairs.chosen is not None:
                chosen = await self._words(row, "chosen", self._pairs.chosen)
            rejected = await self._words(row, "rejected", self._pairs.rejected)
            if self._on_progress is not None:
                self._on_progress(self._meter.progress(self._limits.engine.in_flight))
        return chosen, rejected

    async def _words(self, row: TherapistRow, side: str, player: Player) -> str | Fault:
        """What a model says at this place, in the form of the training target."""
        form = row.casting.arm.reasoning

        def fault_of(reply: Reply) -> Fault | None:
            found = _content(reply, form)
            return found if isinstance(found, Fault) else None

        asked = json.dumps([list(row.prompt), player.model_dump(mode="json")], sort_keys=True)
        mark = hashlib.sha256(asked.encode()).hexdigest()[:12]
        seed = seed_of("pair", row.session.seed, row.turn, side)
        scene = Scene("therapist", row.casting, row.history, seed, row.turn)
        outcome = await self._desk.ask(
            Call(
                key_text=f"{row.session.id}|{row.turn}|{side}|{mark}",
                voice=self._voices[side],
                scene=scene,
                messages=row.prompt,
                sampling=player.sampling(seed),
                reads=fault_of,
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
