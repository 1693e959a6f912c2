"""The protocol against a real inference server: `transformers serve` with a tiny random model."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.endpoint import Endpoint, TransportName
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits

NEEDED = ("torch", "transformers", "tokenizers", "fastapi", "uvicorn", "accelerate")
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(
        missing := [name for name in NEEDED if importlib.util.find_spec(name) is None],
        reason=f"a real server needs {', '.join(missing)}",
    ),
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tiny_model(folder: Path) -> None:
    """A random two-layer Qwen3 with a tokenizer made from a few sentences."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    marks = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["最近总是睡不着，心里很累。", "慢慢来，会好的。"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        eos_token_id=fast.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("tiny-model")
    build_tiny_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    pytest.skip("the server did not start: " + (folder / "log").read_text()[-300:])
                time.sleep(0.1)
        yield f"{url}/v1", str(folder)
    finally:
        process.terminate()
        process.wait()


class Talk:
    """Takes whatever a random model says."""

    def key(self, item: int) -> str:
        return str(item)

    def request(self, item: int) -> ChatRequest:
        said = [{"role": "user", "content": f"第{item}天还是睡不着。"}]
        return ChatRequest(said, sampling=Sampling(temperature=0.9, max_tokens=12, seed=item))

    def check(self, item: int, reply: Reply) -> Fault | None:
        return None

    def ask_again(self, item: int, reply: Reply, fault: Fault) -> ChatRequest | None:
        return None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_a_real_server_is_understood(
    server: tuple[str, str], tmp_path: Path, transport: TransportName
) -> None:
    url, model = server
    where = Endpoint.parse(url, model, environ={}, transport=transport)
    with Journal(tmp_path / "journal.sqlite") as journal:
        summary = run_batch(range(8), Talk(), where, journal, Limits(in_flight=4))
        assert summary.n_accepted + summary.n_rejected == 8
        outcomes = [one for _, one in journal.outcomes(map(str, range(8)))]
    for one in outcomes:
        assert one is not None and one.reply is not None
        # 12 tokens end most replies at the limit, and a reply cut there is no answer
        assert one.is_accepted == (one.reply.finish_reason == "stop" and bool(one.reply.text))
        assert one.usage.prompt_tokens > 5 and one.usage.completion_tokens > 0
