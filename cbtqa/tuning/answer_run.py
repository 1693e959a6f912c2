"""A run of `generate` before its first answer: questions read, model checked, gates passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from cbtqa.errors import ConfigError, UsageError
from cbtqa.llm.disclosure import pass_disclosure_gate
from cbtqa.llm.endpoint import Endpoint
from cbtqa.manifest import now
from cbtqa.psyqa import is_bundled_sample
from cbtqa.settings import Resolved
from cbtqa.tuning.answer_endpoint import sampling_of
from cbtqa.tuning.answer_model import AnswerModel, open_model, read_training
from cbtqa.tuning.asked import Asked, read_asked
from cbtqa.tuning.generate_settings import GenerateSettings, SpeakerSettings
from cbtqa.tuning.libraries import require
from cbtqa.tuning.loading import ComputeType, choose_precision
from cbtqa.tuning.settings import Mode

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class AnswerRun:
    """Everything decided before the first answer."""

    resolved: Resolved[GenerateSettings]
    mode: Mode
    asked: Asked
    started_at: str
    acknowledgements: dict[str, str]
    endpoint: Endpoint | None
    """None when the model runs in this process."""
    opened: AnswerModel | None
    """None at an endpoint."""
    device: str = ""
    precision: ComputeType | None = None
    """Both empty at an endpoint."""

    @property
    def settings(self) -> GenerateSettings:
        """The settings without their origins."""
        return self.resolved.values

    @property
    def model_name(self) -> str:
        """Name at the endpoint, else of the folder or on the Hub."""
        if self.endpoint is not None:
            return self.endpoint.model
        assert self.opened is not None
        return self.opened.name

    @property
    def system(self) -> str:
        """Short name for score tables."""
        return self.settings.system or self.model_name.rstrip("/").rpartition("/")[2]

    def sampling(self) -> dict[str, float | int | str]:
        """Everything that decides how tokens are drawn, as provenance keeps it."""
        told = sampling_of(self.settings).described()
        told.pop("seed", None)
        if self.endpoint is None:
            assert self.precision is not None
            told |= {"engine": self.settings.engine, "dtype": self.precision}
        return told | {"mode": self.mode}

    def fingerprint(self) -> dict[str, str]:
        """Everything that, when changed, makes the journal's answers those of another run."""
        told = {
            "task": "generate",
            "model": self.model_name,
            "sampling": json.dumps(self.sampling(), sort_keys=True),
            "seed": str(self.settings.seed),
        }
        if self.endpoint is not None:
            return told | {"endpoint_host": self.endpoint.host}
        assert self.opened is not None
        template = self.opened.chat.prompt_text([{"role": "user", "content": "问题"}])
        template_hash = hashlib.sha256(template.encode()).hexdigest()
        more = {"weights_sha256": self.opened.weights_sha256, "chat_sha256": template_hash}
        return told | more | {"device": self.device}


def prepare(resolved: Resolved[GenerateSettings], on_stage: OnStage) -> AnswerRun:
    """Decides everything; loads no weights and sends nothing.

    Raises:
        UsageError, ConfigError, DataError, MissingExtraError, LicenceGateError,
        IncompleteRunError: as `generate`.
    """
    settings, started = resolved.values, now()
    trained = read_training(settings.adapter)
    mode = settings.mode or trained.mode or "answer"
    prompt = trained.system_prompt if settings.system_prompt is None else settings.system_prompt
    if settings.out.is_file():
        raise ConfigError(f"--out: {settings.out} is a file")
    endpoint = endpoint_of(settings)
    if endpoint is not None:
        asked = read_asked(settings, mode, prompt)
        acknowledgements = pass_disclosure_gate(
            endpoint,
            "the questions",
            is_acknowledged=settings.acknowledge_disclosure,
            is_invented=all(is_bundled_sample(file.sha256) for file in asked.files),
        )
        return AnswerRun(resolved, mode, asked, started, acknowledgements, endpoint, None)
    require_libraries()
    asked = read_asked(settings, mode, prompt)
    opened, device, precision = open_here(settings, on_stage)
    return AnswerRun(resolved, mode, asked, started, {}, None, opened, device, precision)


def endpoint_of(settings: SpeakerSettings) -> Endpoint | None:
    """The endpoint that the settings name; None for a model in this process.

    Raises:
        UsageError: an endpoint without a model's name, or with an adapter.
        ConfigError: not an address.
    """
    if settings.endpoint is None:
        return None
    if settings.adapter is not None or settings.model is None:
        raise UsageError(
            "--endpoint goes with --model NAME, the model's name there",
            hint="an adapter is served under a name of its own: vllm serve BASE --enable-lora "
            "--lora-modules NAME=FOLDER",
        )
    return Endpoint.parse(settings.endpoint, settings.model)


def require_libraries() -> None:
    """Imports what a model in this process needs, and silences its talk.

    Raises:
        MissingExtraError: torch, transformers or peft are not installed.
    """
    for module in ("torch", "transformers", "peft"):
        require(module)
    talk = require("transformers").logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()


def open_here(settings: SpeakerSettings, on_stage: OnStage) -> tuple[AnswerModel, str, ComputeType]:
    """The model of this process, checked, with its device and precision.

    Raises:
        UsageError, ConfigError, DataError: as `answer_model.open_model`.
    """
    on_stage("checking the model")
    opened = open_model(settings)
    for note in opened.notes:
        on_stage(note)
    device = _choose_device(settings.device)
    precision = choose_precision(settings.dtype) if device == "cuda" else _off_card(settings)
    return opened, device, precision


def _choose_device(wanted: str) -> str:
    torch = require("torch")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(wanted)
    if backend is not None and not backend.is_available():
        raise ConfigError(f"--device {wanted}: there is none", hint="use --device cpu")
    return wanted


def _off_card(settings: SpeakerSettings) -> ComputeType:
    return "fp32" if settings.dtype == "auto" else settings.dtype
