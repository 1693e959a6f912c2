"""What can be set for `cbtqa simulate judge`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cbtqa.llm.limits import Limits
from cbtqa.settings import Settings
from cbtqa.simulation.judged_text import JudgeLimits


class SessionJudgeSettings(Settings):
    """Everything `cbtqa simulate judge` can be told."""

    sessions: Path = Field(
        default=Path("cbtqa-study"), description="Study folder, or a file with transcripts."
    )
    instrument: tuple[str, ...] = Field(
        default=(), description="Instrument id or rubric file; several: several calls each."
    )
    wording: Path | None = Field(
        default=None, description="File with the exact words of the form, for those who may use it."
    )
    endpoint: str | None = Field(
        default=None, description="Base URL of an OpenAI-compatible endpoint, or a preset."
    )
    model: tuple[str, ...] = Field(
        default=(), description="Judge at that endpoint; may be given several times."
    )
    rules: bool = Field(
        default=False, description="Use the built-in rules (no model) whatever the study declares."
    )
    acknowledge_disclosure: bool = Field(
        default=False,
        description="I may pass the transcripts on to the operator of a non-local endpoint; "
        "recorded in the manifest.",
    )
    prompt: str = Field(default="judge_session", description="Prompt, or the path of your own.")
    repeats: int = Field(default=3, ge=1, le=20, description="Ratings of each session.")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Assumed: repeats at 0 would only echo each other."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the first repeat.")
    max_tokens: int = Field(default=4096, ge=64, description="Token limit of one reply.")
    max_turns: int = Field(default=250, ge=2, description="Longer sessions stay unscored.")
    max_transcript_tokens: int = Field(
        default=24_000, ge=100, description="Longer transcripts stay unscored (estimated tokens)."
    )
    in_flight: int = Field(default=16, ge=1, le=16384, description="Most requests at a time.")
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute, at most.")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute, at most.")
    timeout_s: float = Field(default=300.0, gt=0, description="Seconds one request may take.")
    max_attempts: int = Field(
        default=3, ge=1, le=10, description="Replies asked for per rating, faulty ones included."
    )
    budget: float | None = Field(
        default=None, gt=0, description="Stop at this cost, per judge and instrument."
    )
    budget_tokens: int | None = Field(
        default=None, gt=0, description="Stop after this many tokens, per judge and instrument."
    )
    price_in: float | None = Field(default=None, ge=0, description="Price of 1M prompt tokens.")
    price_out: float | None = Field(default=None, ge=0, description="Price of 1M reply tokens.")
    out: Path | None = Field(
        default=None, description="Folder of journals and ratings (default: judged/ in the study)."
    )

    @property
    def judge_limits(self) -> JudgeLimits:
        """What a judge is still given to read."""
        return JudgeLimits(self.max_turns, self.max_transcript_tokens)

    @property
    def limits(self) -> Limits:
        """Limits of the engine."""
        return Limits(
            in_flight=self.in_flight,
            rpm=self.rpm,
            tpm=self.tpm,
            timeout_s=self.timeout_s,
            max_attempts=self.max_attempts,
        )
