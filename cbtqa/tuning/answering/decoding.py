"""Answers by a model in this process: batches of similar length, each row drawn from its own seed.

Prompts are padded on the left, so that every answer begins at the same place. A row never sees
another, and its random numbers come from a generator of its own: neither the rest of its batch nor
an interruption changes an answer (in 16 bits, rounding may).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.llm.chat import Reply, split_reasoning
from cbtqa.manifest import now
from cbtqa.records import Usage
from cbtqa.tuning.answering.model import AnswerModel
from cbtqa.tuning.answering.questions import Prompt
from cbtqa.tuning.answering.settings import GenerateSettings
from cbtqa.tuning.backbones import to_config
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.packing import group_by_length
from cbtqa.tuning.libraries import is_out_of_memory, require


def batches_of(
    prompts: Sequence[Prompt], max_new_tokens: int, batch_tokens: int
) -> list[list[Prompt]]:
    """Prompts of similar length, rows times (longest prompt + longest answer) within the budget.

    The longest come first: when memory is short, it shows at once.
    """
    lengths = [len(prompt.ids) + max_new_tokens for prompt in prompts]
    return [[prompts[k] for k in group] for group in group_by_length(lengths, batch_tokens)]


class Decoder:
    """Generates with one model, called `name` in replies; any of `stops` ends an answer."""

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        stops: Sequence[int],
        settings: GenerateSettings,
        name: str,
    ) -> None:
        self._model, self._chat, self._stops = model, chat, list(stops)
        self._settings, self._name = settings, name
        self._n_rows = int(model.get_input_embeddings().weight.shape[0])

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[str, Reply]]]:
        """Keys with replies by batch, longest first.

        Raises:
            IncompleteRunError: no memory for a single prompt.
            ConfigError: a token without a row in the embedding.
        """
        settings = self._settings
        self._chat.refuse_unknown((prompt.ids for prompt in prompts), self._n_rows)
        waiting = batches_of(prompts, settings.max_new_tokens, settings.batch_tokens)
        while waiting:
            batch = waiting.pop(0)
            try:
                replies = self._answer_batch(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # smaller batches only below: here the traceback still holds the batch's tensors
                replies = None
            if replies is None:
                waiting = _in_halves([batch, *waiting])
                torch.cuda.empty_cache()
            else:
                yield replies

    @torch.no_grad()
    def _answer_batch(self, batch: Sequence[Prompt]) -> list[tuple[str, Reply]]:
        started = time.perf_counter()
        longest = max(len(prompt.ids) for prompt in batch)
        pad = self._chat.tokenizer.pad_token_id
        if pad is None or pad >= self._n_rows:
            pad = self._stops[0]
        ids = torch.full((len(batch), longest), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        words: dict[str, Any] = {"stops": self._stops, "pad": pad}
        words["max_new_tokens"] = self._settings.max_new_tokens
        words["processors"] = self._processors(batch, self._model.device)
        rows = generate_ids(self._model, ids, mask, **words)
        seconds = round(time.perf_counter() - started, 3)
        return [
            (prompt.key, self._reply(prompt, row, seconds))
            for prompt, row in zip(batch, rows, strict=True)
        ]

    def _processors(self, batch: Sequence[Prompt], device: torch.device) -> LogitsProcessorList:
        settings, made = self._settings, LogitsProcessorList()
        if settings.repetition_penalty != 1:
            made.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.temperature > 0:
            made.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k:
                made.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                made.append(TopPLogitsWarper(settings.top_p))
            made.append(GumbelNoise([prompt.key for prompt in batch], settings.seed, device))
        return made

    def _reply(self, prompt: Prompt, made: list[int], seconds: float) -> Reply:
        end = next((place for place, token in enumerate(made) if token in self._stops), None)
        is_ended, kept = end is not None, made[:end]
        text = self._chat.tokenizer.decode(kept, skip_special_tokens=True)
        reason, n_tokens = "stop" if is_ended else "length", len(kept) + is_ended
        return _reply_of(prompt, text, n_tokens, reason, self._name, seconds)


def generate_ids(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    *,
    max_new_tokens: int,
    stops: Sequence[int],
    pad: int | None,
    processors: LogitsProcessorList | None = None,
) -> list[list[int]]:
    """The likeliest new tokens of each row of `ids` (rows, tokens), up to one of `stops`."""
    found = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=pad if pad is not None else stops[0],
        ),
        logits_processor=processors,
    )
    rows: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return rows


def _reply_of(
    prompt: Prompt, text: str, n_tokens: int, reason: str, model: str, seconds: float = 0.0
) -> Reply:
    text, reasoning = split_reasoning(text.strip())
    usage = Usage(prompt_tokens=len(prompt.ids), completion_tokens=n_tokens)
    return Reply(text, reason, None, reasoning, usage, model, now(), seconds)


class GumbelNoise(LogitsProcessor):
    """Makes the largest score a draw from the distribution: Gumbel noise, a generator per row.

    Source: the Gumbel-max trick; the argmax of logits plus Gumbel noise is distributed as softmax.
    """

    def __init__(self, keys: Sequence[str], seed: int, device: torch.device) -> None:
        digests = (blake2b(f"{seed}\x1f{key}".encode(), digest_size=7).digest() for key in keys)
        seeds = (int.from_bytes(digest, "big") for digest in digests)
        self._generators = [torch.Generator(device).manual_seed(one) for one in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # a zero, should one be drawn, would be an infinite score
        return scores.float() - noise.clamp_(min=torch.finfo(torch.float32).tiny).log()


def _in_halves(batches: Sequence[list[Prompt]]) -> list[list[Prompt]]:
    """Every batch in two; what is larger than memory once would be so again."""
    if len(batches[0]) == 1:
        raise IncompleteRunError(
            f"the device has no memory left for one prompt of {len(batches[0][0].ids):,} tokens",
            hint="lower --max-new-tokens, use another card, or a quantised model at an endpoint",
        )
    places = [(batch, (len(batch) + 1) // 2) for batch in batches]
    return [half for batch, at in places for half in (batch[:at], batch[at:]) if half]


BLOCK = 256
"""Prompts given to vLLM at once: so many answers a crash may cost."""


class VllmDecoder:
    """Generates with vLLM inside this process; the same interface as `Decoder`.

    Not run by us, for want of a machine with vLLM: it follows vLLM's documented offline interface
    (`LLM.generate` on token ids, `LoRARequest`). Tested is `vllm serve` with --endpoint vllm.
    """

    def __init__(self, opened: AnswerModel, settings: GenerateSettings) -> None:
        if find_spec("vllm") is None:
            raise ConfigError(
                "--engine vllm: vllm is not installed",
                hint="pip install vllm, or serve the model elsewhere: --endpoint URL --model NAME",
            )
        vllm = require("vllm")
        self._opened, self._settings = opened, settings
        longest = getattr(to_config(opened.backbone), "max_position_embeddings", None)
        words: dict[str, Any] = {"max_model_len": longest} if longest else {}
        self._lora = None
        if opened.adapter is not None:
            request = require("vllm.lora.request").LoRARequest
            self._lora = request("adapter", 1, str(opened.adapter))
            words |= {"enable_lora": True, "max_lora_rank": 256}
        names = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        self._engine = vllm.LLM(
            opened.backbone.location,
            revision=opened.backbone.revision,
            dtype=names[settings.dtype],
            seed=settings.seed,
            generation_config="vllm",  # its own defaults, not those of the model's folder
            **words,
        )
        self._sampling = vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k or 0,
            repetition_penalty=settings.repetition_penalty,
            max_tokens=settings.max_new_tokens,
            seed=settings.seed,
            stop_token_ids=opened.stops,
        )

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[str, Reply]]]:
        """Keys with replies, a block at a time."""
        for start in range(0, len(prompts), BLOCK):
            block = prompts[start : start + BLOCK]
            found = self._engine.generate(
                [{"prompt_token_ids": list(prompt.ids)} for prompt in block],
                self._sampling,
                lora_request=self._lora,
                use_tqdm=False,
            )
            replies = []
            for prompt, one in zip(block, found, strict=True):
                made, name = one.outputs[0], self._opened.name
                args = (made.text, len(made.token_ids), made.finish_reason, name)
                replies.append((prompt.key, _reply_of(prompt, *args)))
            yield replies
