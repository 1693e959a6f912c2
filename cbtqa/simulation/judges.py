"""Which judges rate a study: those named on the command line, those it declares, or the rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cbtqa.errors import LicenceGateError, UsageError
from cbtqa.llm.chat import Sampling
from cbtqa.llm.cost import Price, find_price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.records import Session
from cbtqa.simulation.judge_settings import SessionJudgeSettings
from cbtqa.simulation.rule_judge import RULES
from cbtqa.simulation.study import Player, StudySettings


@dataclass(frozen=True)
class JudgeSpec:
    """One judge; without an endpoint it is the built-in rules."""

    name: str
    endpoint: Endpoint | None
    sampling: Sampling
    n_repeats: int
    price: Price | None = None


def judges_of(settings: SessionJudgeSettings, study: StudySettings | None) -> Iterator[JudgeSpec]:
    """The judges of a run: those named, else those the study declares, else the rules.

    Raises:
        UsageError: half a judge is named, or one that is no endpoint.
    """
    sampling = Sampling(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    if settings.endpoint or settings.model:
        if not (settings.endpoint and settings.model):
            raise UsageError(
                "--endpoint and --model go together", hint="--endpoint vllm --model Qwen3-32B"
            )
        for model in dict.fromkeys(settings.model):
            endpoint = Endpoint.parse(settings.endpoint, model)
            price = _price(settings.price_in, settings.price_out, model)
            yield JudgeSpec(model, endpoint, sampling, settings.repeats, price)
        return
    declared = study.judges if study and not settings.rules else ()
    if not declared:
        yield JudgeSpec(RULES, None, sampling, 1)
    for judge in declared:
        yield _declared(judge.player, judge.repeats, sampling)


def _declared(player: Player, n_repeats: int, default: Sampling) -> JudgeSpec:
    if player.scripted:
        return JudgeSpec(RULES, None, default, 1)
    if not player.endpoint or not player.model:
        raise UsageError(
            "a judge is an endpoint with a model, or scripted rules",
            hint="serve a local model (vllm, llama.cpp, ollama) and name its endpoint",
        )
    # a player's default limit fits one turn of a session, not twenty-five items with quotes
    n_tokens = max(player.max_tokens, default.max_tokens or 0)
    own = {
        "top_p": player.top_p,
        "stop": player.stop,
        "extra": player.extra,
        "max_tokens": n_tokens,
    }
    sampling = default.model_copy(update=own)
    if player.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": player.temperature})
    endpoint = Endpoint.parse(player.endpoint, player.model)
    price = _price(player.price_in, player.price_out, player.model)
    return JudgeSpec(player.model, endpoint, sampling, n_repeats, price)


def _price(price_in: float | None, price_out: float | None, model: str) -> Price | None:
    if price_in is not None and price_out is not None:
        return Price(input=price_in, output=price_out)
    return find_price(model)


def check_disclosure(
    settings: SessionJudgeSettings, sessions: Sequence[Session], judges: Sequence[JudgeSpec]
) -> None:
    """Transcripts from elsewhere may be of real people; simulated ones are nobody's secret."""
    remote = [
        judge.endpoint.host for judge in judges if judge.endpoint and not judge.endpoint.is_local
    ]
    imported = sum(session.stop_reason == "imported" for session in sessions)
    if remote and imported and not settings.acknowledge_disclosure:
        raise LicenceGateError(
            f"{imported} transcripts made elsewhere would be sent to {remote[0]}, a third party",
            hint="use a local endpoint, or, if they may be passed on, add --acknowledge-disclosure",
        )
