"""Answers by vLLM inside this process, where it is installed.

Not run by us: no machine with vLLM was at hand. It follows vLLM's documented offline interface
(`LLM.generate` on token ids, `LoRARequest`); the endpoint road (`vllm serve`, then --endpoint
vllm) is the tested one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Reply, split_reasoning
from cbtqa.manifest import now
from cbtqa.records import Usage
from cbtqa.tuning.answer_model import AnswerModel
from cbtqa.tuning.asked import Prompt
from cbtqa.tuning.backbones import to_config
from cbtqa.tuning.generate_settings import GenerateSettings
from cbtqa.tuning.libraries import require

BLOCK = 256
"""Prompts handed over at once: so many answers a crash may cost."""


class VllmDecoder:
    """Generates with vLLM; the same interface as `decoding.Decoder`."""

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
            pairs = zip(block, found, strict=True)
            yield [(prompt.key, self._reply(prompt, one.outputs[0])) for prompt, one in pairs]

    def _reply(self, prompt: Prompt, made: Any) -> Reply:
        text, reasoning = split_reasoning(made.text.strip())
        return Reply(
            text=text,
            finish_reason=made.finish_reason,
            reasoning=reasoning,
            usage=Usage(prompt_tokens=len(prompt.ids), completion_tokens=len(made.token_ids)),
            model=self._opened.name,
            created_at=now(),
        )
