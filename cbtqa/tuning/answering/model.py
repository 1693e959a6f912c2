"""The model that answers: an adapter on its base, or a model of its own, with its chat format.

loaded = open_model(settings)          # finds and checks everything; loads no weights yet
model = loaded.load("cuda", "bf16")
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import parse_record, read_json
from cbtqa.llm.chat import Fault, Message
from cbtqa.manifest import describe_file
from cbtqa.records import Reason
from cbtqa.tuning.answering.settings import SpeakerSettings
from cbtqa.tuning.backbones import Backbone, fetch_if_present
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.libraries import require
from cbtqa.tuning.loading import ComputeType, choose_backbone, load_base, load_chat
from cbtqa.tuning.settings import Mode, OnStage, Thinking
from cbtqa.tuning.training.record import RUN_NAME, RunStart
from cbtqa.tuning.weights.adapter import CONFIG_NAME, check_base, find_adapter, find_base
from cbtqa.tuning.weights.files import (
    GENERATION_NAME,
    combine_hashes,
    describe_base,
    read_base_record,
)


@dataclass(frozen=True)
class Trained:
    """How an adapter was trained, as far as it decides the prompt; None where unknown."""

    mode: Mode | None = None
    system_prompt: str | None = None
    chat_format: str | None = None
    thinking: Thinking | None = None


def read_training(adapter: Path | None) -> Trained:
    """What the adapter's `run.json` records; nothing for models and other programs' adapters."""
    if adapter is None or not (adapter / RUN_NAME).is_file():
        return Trained()
    start = parse_record(RunStart, read_json(adapter / RUN_NAME), str(adapter / RUN_NAME))
    known = start.settings
    return Trained(**{name: known[name].value for name in Trained.__annotations__ if name in known})


def prompt_form(settings: SpeakerSettings) -> tuple[Mode, str | None]:
    """Mode and system text of the prompts: as set, else as the adapter was trained."""
    trained = read_training(settings.adapter)
    system = trained.system_prompt if settings.system_prompt is None else settings.system_prompt
    return settings.mode or trained.mode or "answer", system


@dataclass(frozen=True)
class AnswerModel:
    """A model that is known and checked, but whose weights are not loaded yet."""

    backbone: Backbone
    chat: ChatFormat
    adapter: Path | None
    name: str
    """Short name: the adapter's folder, the model's folder or its Hub id."""
    weights_sha256: str
    """Of base and adapter together."""
    notes: tuple[str, ...] = ()

    @property
    def generation(self) -> dict[str, Any]:
        """The model's own generation_config.json; empty where it has none."""
        place = self.backbone
        file = fetch_if_present(place.location, GENERATION_NAME, revision=place.revision)
        found = read_json(file) if file else {}
        return found if isinstance(found, dict) else {}

    @property
    def stops(self) -> list[int]:
        """Tokens any of which ends an answer."""
        tokenizer = self.chat.tokenizer
        named = tokenizer.convert_tokens_to_ids(list(self.backbone.stops))
        given = self.generation.get("eos_token_id")
        own = given if isinstance(given, list) else [given]
        found = {*self.chat.end_ids, tokenizer.eos_token_id, *named, *own}
        return sorted(found - {None, tokenizer.unk_token_id})

    def fault_of_prompt(
        self, messages: Sequence[Message], n_tokens: int, max_new_tokens: int
    ) -> Fault | None:
        """Why a prompt of so many tokens cannot be asked, or None."""
        context, detail = self.backbone.context, None
        if any(self.chat.holds_special_token(turn["content"]) for turn in messages):
            # it would end the user's turn and speak for the system; left out in training, too
            detail = "spells out a control token of the chat format"
        elif context is not None and n_tokens + max_new_tokens > context:
            detail = (
                f"{n_tokens:,} tokens and {max_new_tokens:,} for the answer, "
                f"the model takes {context:,}"
            )
        return Fault(Reason.BAD_REQUEST, detail) if detail else None

    def load(self, device: str, precision: ComputeType) -> Any:
        """The model ready to generate; raises DataError for an adapter that does not fit."""
        model = load_base(self.backbone, precision, place=None if device == "cpu" else device)
        if self.adapter is None:
            return model.eval()
        try:
            with warnings.catch_warnings():
                # peft 0.21 asks transformers 5.23 for a property by its old name
                warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
                return require("peft").PeftModel.from_pretrained(model, str(self.adapter)).eval()
        except (RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())[:200]
            raise DataError(
                f"the adapter does not fit {self.backbone.display_name}: {words}",
                where=str(self.adapter),
                hint="name the base it was trained on: --base FOLDER",
            ) from None


def open_model(settings: SpeakerSettings, on_stage: OnStage = lambda words: None) -> AnswerModel:
    """Finds the model, its base and its tokenizer, and checks that they belong together.

    A model that has to be converted first is, once, as `on_stage` tells.

    Raises:
        UsageError: neither an adapter nor a model named, or both.
        DataError: no adapter there, or on another base than the one given.
        ConfigError: a model that cannot be had, converted or loaded.
    """
    if (settings.adapter is None) == (settings.model is None):
        raise UsageError(
            "name one of --adapter and --model",
            hint="--adapter FOLDER of cbtqa finetune; --model FOLDER or Hub id; with --endpoint "
            "URL the model's name there",
        )
    if settings.adapter is not None:
        return _open_adapter(settings, settings.adapter, on_stage)
    backbone = choose_backbone(settings.model, settings.revision, on_stage, place=settings.from_)
    chat = load_chat(backbone, settings.chat_format, _thinking(settings, "keep"))
    sha256 = describe_base(backbone).weights_sha256
    return AnswerModel(backbone, chat, None, backbone.display_name, sha256)


def _open_adapter(settings: SpeakerSettings, folder: Path, on_stage: OnStage) -> AnswerModel:
    config, weights = find_adapter(folder)
    recorded = read_base_record(folder)
    backbone = find_base(config, settings.base, recorded, on_stage, settings.from_)
    base, notes = check_base(backbone, recorded)
    files = (*map(describe_file, weights), describe_file(folder / CONFIG_NAME))
    chat, sha256 = _chat_of_adapter(settings, folder, backbone), combine_hashes(files)
    name, sha256 = folder.resolve().name, f"{base.weights_sha256}+{sha256}"
    return AnswerModel(backbone, chat, folder, name, sha256, notes)


def _thinking(settings: SpeakerSettings, otherwise: Thinking) -> Thinking:
    return settings.thinking or read_training(settings.adapter).thinking or otherwise


def _chat_of_adapter(settings: SpeakerSettings, folder: Path, backbone: Backbone) -> ChatFormat:
    """The tokenizer saved with the adapter, whose template is the one it was trained with."""
    if not (folder / "tokenizer_config.json").is_file():
        return load_chat(backbone, settings.chat_format, _thinking(settings, "off"))
    words: dict[str, Any] = {"path": folder, "revision": None, "template": None}
    if read_training(folder).chat_format is not None:
        words["end_of_turn"] = None  # it was that of the format, which the template shows
    # what was saved has the switch as it was trained
    thinking = settings.thinking or "keep" if settings.chat_format is None else None
    found = thinking or _thinking(settings, "off")
    return load_chat(backbone.model_copy(update=words), settings.chat_format, found)
