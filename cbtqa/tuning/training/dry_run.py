"""What a training run would need: data in tokens, memory on named cards, arithmetic, time.

Nothing is trained, downloaded or sent. Sizes come from the backbone's configuration, token counts
from its tokenizer where that is on this machine, else from characters:

    found = dry_run(resolved)
    found.cards[0].plain.total, found.cards[0].seconds
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cbtqa.manifest import SettingValue, describe_settings
from cbtqa.records import Record
from cbtqa.settings import Resolved
from cbtqa.tuning.attention import reason_to_pad
from cbtqa.tuning.backbones import Backbone, to_config
from cbtqa.tuning.budget.counting import ShapeCount, count_once
from cbtqa.tuning.budget.cpu import CpuEstimate, estimate_cpu
from cbtqa.tuning.budget.estimate import (
    Card,
    Memory,
    Work,
    expected_seconds,
    flops_per_token,
    load_cards,
    memory_of,
)
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import (
    IGNORED,
    Document,
    EncodedSet,
    Item,
    add_if_short,
    checked,
    encode,
)
from cbtqa.tuning.data.examples import ExampleSet, read_training_examples, read_validation_examples
from cbtqa.tuning.data.packing import StepPlan
from cbtqa.tuning.libraries import read_table, require
from cbtqa.tuning.loading import choose_backbone, load_chat, lora_config
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.prepare import padding_note, resolve_for_run, within_context
from cbtqa.tuning.weights.cache import cache_folder

STEPS_LAID_OUT = 500
FSDP_CARDS = (2, 4, 8)
ROUGH = "the tokenizer is not on this machine: token counts are approximate (+-20 %)"


class Piece(Record):
    """A stretch of one example."""

    text: str
    is_learnt: bool


class Layout(Record):
    """How the items go through the model."""

    n_items: int
    n_steps: int
    n_steps_laid_out: int
    """Steps that the figures below are counted from."""
    n_micro_batches: float
    """Per step and process, on average."""
    mean_tokens: float
    """Real tokens of a micro-batch, on average."""
    most_tokens: int
    """Of the largest micro-batch, padding included: what memory has to hold."""
    fill: float
    """Real tokens as a share of the token budget, 0 to 1; what is left is never computed."""
    is_packed: bool
    """False by the settings, or where the model would mix packed documents."""
    padding: float
    """Padding as a share of what is computed, 0 to 1; 0 when packed."""


class CardEstimate(Record):
    """One kind of card."""

    card: str
    memory_bytes: int
    """What it has."""
    checkpointing: bool
    """As set or, by `auto`, only where it does not fit otherwise."""
    needed_bytes: int
    """With or without checkpointing, as above."""
    fits: bool
    n_fsdp_cards: int | None = None
    """So many cards hold it together by FSDP; None where one holds it, or eight do not."""
    seconds: float | None
    """Of the whole training; None where it does not fit."""
    assumed_share: float
    """Of the card's throughput, for `seconds`."""


class DryRun(Record):
    """The report of a dry run."""

    settings: dict[str, SettingValue]
    backbone: str
    licence: str
    notes: tuple[str, ...] = ()
    """What has to come first, and what is approximate."""
    tokens_by: Literal["tokenizer", "approximation"]
    data: dict[str, dict[str, Any]]
    """Token statistics by split."""
    layout: Layout
    n_parameters: int
    n_trainable: int
    bytes_per_token: float
    """Activations kept for the backward pass."""
    checkpointed_bytes_per_token: float
    flops_per_token: float
    """Without gradient checkpointing."""
    total_tokens: int
    """Over all epochs."""
    n_processes: int
    """Cards that share each step."""
    memory_by: Literal["counted", "by formula"]
    memory: dict[Literal["plain", "checkpointed"], Memory]
    cards: tuple[CardEstimate, ...]
    cpu: CpuEstimate | None = None
    """This machine's; None where it has a card, or several cards are asked about."""
    example: tuple[Piece, ...]
    """One training example as the model sees it."""


def dry_run(
    resolved: Resolved[FinetuneSettings],
    *,
    cards: Iterable[Card] | None = None,
    n_processes: int = 1,
) -> DryRun:
    """Estimates a run.

    Args:
        cards: None for all that `cards.yaml` names.
        n_processes: cards that share each step (DDP).

    Raises:
        ConfigError, DataError: as the run itself would; what is not downloaded or converted yet
            becomes a note instead.
    """
    resolved = resolve_for_run(resolved)
    given = resolved.values
    backbone = choose_backbone(given.backbone, given.revision, is_dry=True)
    config = to_config(backbone)
    settings, notes = _as_it_will_run(given, backbone, config)
    chat = _chat_on_this_machine(backbone, settings)
    splits = _read_splits(settings, chat, backbone, config.get_text_config().vocab_size)
    train = splits["train"]
    layout = _lay_out(train.lengths, settings, n_processes)
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    lora = lora_config(settings, backbone)
    count = count_once(config, lora, dtype)
    if count.by_formula:
        notes = (*notes, f"memory by formula, not counted: {count.by_formula}")
    work = _work(train, layout, settings, count)
    sizing = _Sizing(count, work, settings, n_processes)
    cards = load_cards().values() if cards is None else cards
    trains_here = n_processes == 1 and not torch.cuda.is_available()
    return DryRun(
        settings=describe_settings(resolved),
        backbone=backbone.display_name,
        licence=backbone.licence,
        notes=(*notes, *(() if chat else (ROUGH,))),
        tokens_by="tokenizer" if chat else "approximation",
        data={name: split.statistics(settings.loss_on) for name, split in splits.items()},
        layout=layout,
        n_parameters=count.n_frozen + count.n_trainable,
        n_trainable=count.n_trainable,
        bytes_per_token=count.plain.saved_per_token,
        checkpointed_bytes_per_token=count.recomputed.saved_per_token,
        flops_per_token=work.flops.total(checkpointing=False),
        total_tokens=work.total_tokens,
        n_processes=n_processes,
        memory_by="by formula" if count.by_formula else "counted",
        memory={"plain": sizing.plain, "checkpointed": sizing.checkpointed},
        cards=tuple(sizing.on(card) for card in cards),
        cpu=estimate_cpu(config, lora, settings, work) if trains_here else None,
        example=_show_example(train, chat, settings),
    )


def _work(train: EncodedSet, layout: Layout, settings: FinetuneSettings, count: ShapeCount) -> Work:
    statistics = train.statistics(settings.loss_on)
    labelled = statistics["n_learnt_tokens"] / max(1, statistics["n_tokens"])
    lengths = [len(document) for item in train.items for document in item.documents]
    squares = sum(n * n for n in lengths)
    n_seen = layout.n_steps * settings.batch_size
    return Work(
        most_tokens=layout.most_tokens,
        labelled=labelled,
        flops=flops_per_token(count, length=squares / max(1, sum(lengths)), labelled=labelled),
        total_tokens=round(sum(train.lengths) * n_seen / len(train.items)),
    )


def _as_it_will_run(
    given: FinetuneSettings, backbone: Backbone, config: Any
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The settings that the backbone allows, and what has to come first or differs."""
    settings, notes = within_context(given, backbone)
    if backbone.gated:
        words = f"gated: accept the licence on the page of {backbone.hub_id}, hf auth login"
        notes = (words, *notes)
    if backbone.needs_conversion:
        words = f"the run begins with a download and a conversion, once, into {cache_folder()}"
        notes = (words, *notes)
    if settings.packing and (reason := reason_to_pad(config)):
        settings = settings.model_copy(update={"packing": False})
        notes = (*notes, padding_note(backbone, reason))
    return settings, notes


def _read_splits(
    settings: FinetuneSettings, chat: ChatFormat | None, backbone: Backbone, vocabulary: int
) -> dict[str, EncodedSet]:
    """Every split, encoded; by approximation without a chat format."""
    found = {
        "train": read_training_examples(settings),
        "validation": read_validation_examples(settings),
    }
    splits = {
        name: encode(of, chat, settings, backbone.context)
        if chat
        else approximate(of, vocabulary, settings, backbone.context)
        for name, of in found.items()
        if of is not None
    }
    if chat:
        chat.refuse_unknown(chain.from_iterable(of.rows for of in splits.values()), vocabulary)
    return splits


def _chat_on_this_machine(backbone: Backbone, settings: FinetuneSettings) -> ChatFormat | None:
    """The chat format; None when the tokenizer is missing here or needs conversion."""
    if backbone.needs_conversion:
        return None
    if backbone.path is None:
        cached = require("transformers.utils.hub").cached_file(
            backbone.location,
            "tokenizer_config.json",
            revision=backbone.revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if cached is None:
            return None
        # the cache's own folder: a Hub id would be looked up on the network again
        backbone = backbone.model_copy(update={"path": Path(cached).parent, "revision": None})
    return load_chat(backbone, settings.chat_format, settings.thinking)


def _lay_out(lengths: Sequence[int], settings: FinetuneSettings, n_processes: int) -> Layout:
    """Lays the first steps out as the run would."""
    plan = StepPlan(
        lengths,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        budget=settings.micro_batch_tokens,
        n_processes=n_processes,
        is_packed=settings.packing,
    )
    n_steps = min(len(plan), STEPS_LAID_OUT)
    real, computed = [], []
    for number in range(n_steps):
        for of_process in plan.step(number).micro_batches:
            for members in of_process:
                sizes = [lengths[member] for member in members] or [0]
                real.append(sum(sizes))
                computed.append(sum(sizes) if settings.packing else len(sizes) * max(sizes))
    return Layout(
        n_items=len(lengths),
        n_steps=len(plan),
        n_steps_laid_out=n_steps,
        n_micro_batches=len(real) / max(1, n_steps) / n_processes,
        mean_tokens=sum(real) / max(1, len(real)),
        most_tokens=max(computed, default=0),
        is_packed=settings.packing,
        fill=sum(real) / max(1, sum(max(settings.micro_batch_tokens, n) for n in computed)),
        padding=1 - sum(real) / max(1, sum(computed)),
    )


class _Sizing:
    """Memory of this run, however it is divided."""

    def __init__(
        self, count: ShapeCount, work: Work, settings: FinetuneSettings, n_cards: int
    ) -> None:
        self._count, self._work = count, work
        self._settings, self._n_cards = settings, n_cards
        self.plain, self.checkpointed = self._memory(False), self._memory(True)

    def _memory(self, checkpointing: bool, n_fsdp_cards: int | None = None) -> Memory:
        return memory_of(
            self._count,
            self._work.most_tokens,
            self._work.labelled,
            checkpointing=checkpointing,
            is_quantized=self._settings.method == "qlora",
            optimizer=self._settings.optimizer,
            n_cards=n_fsdp_cards or self._n_cards,
            sharding="fsdp" if n_fsdp_cards else "ddp",
        )

    def on(self, card: Card) -> CardEstimate:
        """The estimate for cards of this kind."""
        wanted = self._settings.gradient_checkpointing
        is_tight = not self.plain.fits(card.memory_bytes)
        checkpointing = wanted == "on" or (wanted == "auto" and is_tight)
        needed = self.checkpointed if checkpointing else self.plain
        fits = needed.fits(card.memory_bytes)
        divided = () if fits else FSDP_CARDS
        per_token = self._work.flops.total(checkpointing=checkpointing)
        n_tokens = self._work.total_tokens
        seconds = expected_seconds(n_tokens, per_token, card, n_cards=self._n_cards)
        holding = (n for n in divided if self._memory(checkpointing, n).fits(card.memory_bytes))
        return CardEstimate(
            card=card.name,
            memory_bytes=card.memory_bytes,
            checkpointing=checkpointing,
            needed_bytes=needed.total,
            fits=fits,
            n_fsdp_cards=next(holding, None),
            seconds=seconds if fits else None,
            assumed_share=card.share,
        )


def _show_example(
    encoded: EncodedSet, chat: ChatFormat | None, settings: FinetuneSettings
) -> tuple[Piece, ...]:
    """The first example in stretches of learnt and not learnt text."""
    example, document = encoded.examples[0], encoded.items[0].documents[0]
    if chat is None:
        prompt = "\n".join(turn["content"] for turn in example.prompt)
        is_whole = settings.loss_on == "text"
        return (Piece(text=prompt, is_learnt=is_whole), Piece(text=example.answer, is_learnt=True))
    pairs = zip(document.ids.tolist(), document.labels(settings.loss_on).tolist(), strict=True)
    return tuple(
        Piece(text=chat.tokenizer.decode([token for token, _ in run]), is_learnt=is_learnt)
        for is_learnt, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    )


_HAN = re.compile(r"[\u3400-\u9fff\u3000-\u303f\uff00-\uffef\U00020000-\U0003ffff]")


_rates = partial(read_table, "token_rates.yaml")


def approximate_tokens(text: str, vocabulary: int) -> int:
    """About how many tokens a text takes: characters times a rate by size of the vocabulary."""
    rates = _rates()["rates"]
    rate: dict[str, float] = next(row for row in rates if vocabulary >= row["vocabulary"])
    n_han = len(_HAN.findall(text))
    return round(n_han * rate["han"] + (len(text) - n_han) * rate["other"])


def approximate(
    found: ExampleSet, vocabulary: int, settings: FinetuneSettings, context: int | None = None
) -> EncodedSet:
    """Items of about the right size without content; raises DataError when nothing is left."""
    encoded = EncodedSet(found.name, dropped=found.dropped.copy(), n_in=found.n_in)
    for example in found.examples:
        turns = (turn["content"] for turn in example.prompt)
        n_prompt = sum(approximate_tokens(text, vocabulary) for text in turns)
        n_prompt += _rates()["prompt_extra"]
        documents = []
        for text in (example.answer, example.rejected):
            if text is not None:
                n = n_prompt + approximate_tokens(text, vocabulary) + _rates()["answer_extra"]
                documents.append(Document(np.zeros(n, np.int32), n_prompt))
        add_if_short(encoded, example, Item(example.id, tuple(documents)), settings)
    return checked(encoded, settings, context)
