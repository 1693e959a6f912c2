"""The optional second model of the screen: a multilingual encoder that reads every sentence.

    model = open_encoder("intfloat/multilingual-e5-small")  # or a local folder of it
    model.read(["药都攒够了。明天见。"])[0].scores[0]  # (sentences, none|concern|explicit)

The text goes through the encoder once, in pieces; a sentence is the mean of its tokens, so that it
is graded within what stands around it. What was tuned (a low-rank change of the upper layers and a
linear head) is a small file: `screen_encoder.npz` of this package, or of the folder that is named.
`scripts/train_safety --encoder` fits it on `data/safety`. torch is imported when a model is opened.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cbtqa.errors import ConfigError, require
from cbtqa.files import sha256_of
from cbtqa.safety.normalise import Language, fold
from cbtqa.safety.sentence_model import Floats, Ints, Window
from cbtqa.settings import Settings

FLAG = "--screen-model"
TUNED_NAME = "screen_encoder.npz"
MOST_TOKENS = 160
"""Tokens of a piece; the texts that it was tuned on have at most 155."""
BATCH_TOKENS = 4096
"""Tokens that the encoder reads at a time, padding included."""
PROBE = "今天下班早，和同事去江边走了走。The bus was late again."
LEAST_LIKE_PROBE = 0.9
"""Cosine to what the weights that it was tuned on made of `PROBE`. Another encoder of the same
shape is near 0; rounding the weights to 8 bits leaves more than 0.99."""
_END = re.compile(r"[。!?\n]+[\"”』)]*|\.+[\"')]*(?=\s|$)")


class ScreenSettings(Settings):
    """A further model of the screen."""

    panel: ClassVar[str] = "Screen"
    screen_model: str | None = None
    """An encoder that grades texts beside the built-in screen; the worse grade counts:
    intfloat/multilingual-e5-small, a folder of it, or one of scripts/train_safety. Needs torch."""


class Opinion(NamedTuple):
    """What the encoder says of a text."""

    windows: list[Window]
    """Its sentences; only their spans are filled in."""
    scores: list[Floats]
    """A group's probabilities for each sentence: suicide, then the dangers in order."""


@dataclass(frozen=True)
class Tuned:
    """What is fitted, apart from the encoder itself."""

    base: str
    """Hub id, or name of the folder, of the encoder that it was tuned on."""
    changes: Mapping[str, tuple[Any, Any]]
    """By name of a linear map: `(out, rank)` and `(rank, in)`, whose product is added to it."""
    weight: Floats
    """`(3 x groups, hidden size)`."""
    bias: Floats
    limits: Mapping[Language, tuple[float, float]]
    """From which probability a sentence is explicit, and a concern; by language of the text."""
    danger_limits: tuple[float, float, float]
    """From which a danger is reported; from which where a plain wording matches; and share of the
    acute form from which it is acute."""
    corpus_sha256: str
    probe: Floats
    """Mean of the tokens of `PROBE`."""

    def save(self, path: Path) -> None:
        parts = {
            f"{side}:{name}": part.astype(np.float16)
            for name, pair in self.changes.items()
            for side, part in zip(("up", "down"), pair, strict=True)
        }
        np.savez_compressed(
            path,
            **parts,
            base=self.base,
            weight=self.weight.astype(np.float16),
            bias=self.bias.astype(np.float32),
            limits=np.array([self.limits["zh"], self.limits["en"]]),
            danger_limits=np.array(self.danger_limits),
            corpus_sha256=self.corpus_sha256,
            probe=self.probe.astype(np.float16),
        )

    @classmethod
    def read(cls, content: bytes) -> Tuned:
        """Raises ValueError, KeyError or OSError for a file of something else."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = [name.partition(":")[2] for name in arrays if name.startswith("up:")]
            zh, en = arrays["limits"].tolist()
            return cls(
                base=str(arrays["base"]),
                changes={name: (arrays[f"up:{name}"], arrays[f"down:{name}"]) for name in names},
                weight=arrays["weight"].astype(np.float64),
                bias=arrays["bias"].astype(np.float64),
                limits={"zh": tuple(zh), "en": tuple(en)},
                danger_limits=tuple(arrays["danger_limits"].tolist()),
                corpus_sha256=str(arrays["corpus_sha256"]),
                probe=arrays["probe"].astype(np.float64),
            )


def sentence_spans(folded: str) -> list[tuple[int, int]]:
    """Sentences of a folded text, Chinese and English, without the blanks round them."""
    spans, start = [], 0
    for end in (*(match.end() for match in _END.finditer(folded)), len(folded)):
        said = folded[start:end]
        if said.strip():
            spans.append((start + len(said) - len(said.lstrip()), start + len(said.rstrip())))
        start = end
    return spans


class Piece(NamedTuple):
    """A stretch that the encoder reads at once."""

    text: int
    """Place of its text among those given."""
    ids: list[int]
    sentences: list[int]
    """For each token the sentence of the text; -1 for one that belongs to none."""


class Encoder:
    """An encoder with its tokenizer, as it was published."""

    def __init__(self, given: str) -> None:
        torch, transformers = require("torch", "neural"), require("transformers", "neural")
        hub = require("transformers.utils.hub", "neural")
        logging = require("transformers.utils.logging", "neural")
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            weights = Path(hub.cached_file(given, "model.safetensors"))
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                given, trust_remote_code=False
            )
            self.model: Any = transformers.AutoModel.from_pretrained(
                given, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            words = str(error).strip().partition("\n")[0]
            folder = given.rpartition("/")[2] or "NAME"
            raise ConfigError(
                f"{FLAG}: cannot load {given}: {words}",
                hint=f"where there is a network: hf download {given} --local-dir {folder}; "
                f"then {FLAG} {folder}",
            ) from None
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        if not hasattr(getattr(self.model, "encoder", None), "layer"):
            raise ConfigError(f"{FLAG}: {given} is no encoder of BERT's kind")
        if not self.tokenizer.is_fast:
            raise ConfigError(f"{FLAG}: the tokenizer of {given} gives no offsets")
        self.name = Path(given).resolve().name if Path(given).is_dir() else given
        self.weights_sha256 = sha256_of(weights)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device).eval().requires_grad_(False)

    @property
    def layers(self) -> Any:
        return self.model.encoder.layer

    @property
    def n_lower(self) -> int:
        """Layers that tuning leaves as they are."""
        return max(0, len(self.layers) - N_UPPER)

    def pieces(self, folded: Sequence[str]) -> tuple[list[list[tuple[int, int]]], list[Piece]]:
        """The sentences of each text, and what is read at once, text by text in order."""
        spans = [sentence_spans(text) for text in folded]
        read = self.tokenizer(
            list(folded), return_offsets_mapping=True, add_special_tokens=False, verbose=False
        )
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        most, pieces = self._most_tokens(), []
        for place, (ids, offsets) in enumerate(
            zip(read["input_ids"], read["offset_mapping"], strict=True)
        ):
            owners = _owners(offsets, spans[place])
            for start, end in _cuts(owners, most):
                whole = [first, *ids[start:end], last]
                pieces.append(Piece(place, whole, [-1, *owners[start:end], -1]))
        return spans, pieces

    def _most_tokens(self) -> int:
        positions = int(self.model.config.max_position_embeddings)
        if "roberta" in self.model.config.model_type:  # counts from the padding id on
            positions -= int(self.model.config.pad_token_id) + 1
        return min(MOST_TOKENS, positions) - 2

    def batches(self, lengths: Sequence[int], most: int = BATCH_TOKENS) -> Iterator[list[int]]:
        """Places of pieces of like length, so that little is spent on padding."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda n: lengths[n]):
            if batch and (len(batch) + 1) * lengths[place] > most:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def embed(self, pieces: Sequence[Piece]) -> tuple[Any, Any]:
        """`(pieces, tokens, hidden size)` before the first layer, and the mask for the layers."""
        import torch

        longest = max(len(piece.ids) for piece in pieces)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([piece.ids + [pad] * (longest - len(piece.ids)) for piece in pieces])
        mask = self.mask([len(piece.ids) for piece in pieces], longest)
        return self.model.embeddings(input_ids=ids.to(self.device)), mask

    def mask(self, lengths: Sequence[int], longest: int) -> Any:
        """What is added to the attention scores: a great negative number at padding."""
        import torch

        beyond = torch.arange(longest) >= torch.tensor(lengths)[:, None]
        return (beyond * torch.finfo(torch.float32).min)[:, None, None, :].to(self.device)

    def run(self, hidden: Any, mask: Any, first: int, last: int) -> Any:
        """Hidden states after the layers from `first` up to `last`."""
        for layer in self.layers[first:last]:
            hidden = layer(hidden, attention_mask=mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden


def _owners(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    owners, current = [], 0
    for start, end in offsets:
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        is_inside = current < len(spans) and end > spans[current][0]
        owners.append(current if is_inside else -1)
    return owners


def _cuts(owners: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Pieces of at most `most` tokens, cut between sentences where that is possible."""
    start = 0
    while len(owners) - start > most:
        end = start + most
        cut = end
        while cut > start and owners[cut] == owners[cut - 1]:
            cut -= 1
        end = cut if cut > start else end
        yield start, end
        start = end
    if start < len(owners):
        yield start, len(owners)


def pool(hidden: Any, sentences: Sequence[Sequence[int]]) -> tuple[Any, list[tuple[int, int]]]:
    """Means of the tokens of each sentence, `(sentences, hidden size)`, and whose they are.

    Args:
        sentences: for each row of `hidden` the sentence of each token.
    """
    import torch

    known: dict[tuple[int, int], int] = {}
    places, owners = [], []
    for row, of in enumerate(sentences):
        for column, sentence in enumerate(of):
            if sentence >= 0:
                owners.append(known.setdefault((row, sentence), len(known)))
                places.append(row * hidden.shape[1] + column)
    flat = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(places, device=hidden.device)]
    index = torch.tensor(owners, device=hidden.device)
    sums = torch.zeros(len(known), hidden.shape[-1], device=hidden.device)
    sums = sums.index_add(0, index, flat)
    return sums / torch.bincount(index, minlength=len(known))[:, None], list(known)


class ScreenEncoder:
    """An encoder with what was tuned on it."""

    def __init__(self, encoder: Encoder, tuned: Tuned) -> None:
        self.tuned, self._encoder = tuned, encoder
        self.name = encoder.name
        self._check_probe()
        self._apply()
        content = hashlib.sha256(encoder.weights_sha256.encode())
        content.update(self._fingerprint())
        self.sha256 = content.hexdigest()
        """Of the encoder's weights and of what was tuned."""

    def _fingerprint(self) -> bytes:
        parts = [part for pair in self.tuned.changes.values() for part in pair]
        rest = [self.tuned.weight, self.tuned.bias, *map(np.array, self.tuned.limits.values())]
        rest.append(np.array(self.tuned.danger_limits))
        return b"".join(np.ascontiguousarray(part).tobytes() for part in (*parts, *rest))

    @property
    def described(self) -> str:
        """Name and hash, as manifests and signatures hold them."""
        return f"{self.name}@{self.sha256}"

    def _check_probe(self) -> None:
        hidden = int(self._encoder.model.config.hidden_size)
        given, probe = self._encoder.name, self.tuned.probe
        if hidden == len(probe):
            found = probe_of(self._encoder)
            like = float(found @ probe / np.linalg.norm(found) / np.linalg.norm(probe))
            if like >= LEAST_LIKE_PROBE:
                return
        raise ConfigError(
            f"{FLAG}: nothing is tuned for {given}: these are not the weights of {self.tuned.base}",
            hint=f"{FLAG} {self.tuned.base}, or tune your own: scripts/train_safety --encoder",
        )

    def _apply(self) -> None:
        import torch

        for name, (up, down) in self.tuned.changes.items():
            linear = self._encoder.layers.get_submodule(name)
            change = torch.tensor(up.astype(np.float32) @ down.astype(np.float32))
            linear.weight += change.to(linear.weight.device)

    def read(self, texts: Sequence[str]) -> list[Opinion]:
        """What the encoder says of each text."""
        import torch

        spans, pieces = self._encoder.pieces([fold(text) for text in texts])
        vectors = [np.zeros((len(some), len(self.tuned.probe))) for some in spans]
        weights = [np.zeros(len(some)) for some in spans]
        lengths = [len(piece.ids) for piece in pieces]
        for batch in self._encoder.batches(lengths):
            chosen = [pieces[place] for place in batch]
            with torch.inference_mode():
                hidden, mask = self._encoder.embed(chosen)
                hidden = self._encoder.run(hidden, mask, 0, len(self._encoder.layers))
                means, owners = pool(hidden, [piece.sentences for piece in chosen])
            for mean, (row, sentence) in zip(means.cpu().numpy(), owners, strict=True):
                piece = chosen[row]
                n = piece.sentences.count(sentence)  # a long sentence may stand in two pieces
                vectors[piece.text][sentence] += n * mean
                weights[piece.text][sentence] += n
        return list(map(self._opinion, spans, vectors, weights))

    def _opinion(self, spans: list[tuple[int, int]], vectors: Floats, weights: Floats) -> Opinion:
        read = np.flatnonzero(weights)
        sums = (vectors[read] / weights[read, None]) @ self.tuned.weight.T + self.tuned.bias
        parts = sums.reshape(len(read), len(self.tuned.bias) // 3, 3)
        parts = np.exp(parts - parts.max(axis=2, keepdims=True))
        shares = parts / parts.sum(axis=2, keepdims=True)
        windows = [Window(*spans[place], (), (), ()) for place in read]
        return Opinion(windows, [shares[:, group] for group in range(shares.shape[1])])


def probe_of(encoder: Encoder) -> Floats:
    """The mean of the tokens of `PROBE`, by an encoder that nothing was added to."""
    import torch

    _, pieces = encoder.pieces([fold(PROBE)])
    with torch.inference_mode():
        hidden, mask = encoder.embed(pieces[:1])
        hidden = encoder.run(hidden, mask, 0, len(encoder.layers))
    mean: Floats = hidden[0].mean(dim=0).cpu().numpy().astype(np.float64)
    return mean


@cache
def open_encoder(given: str | None) -> ScreenEncoder | None:
    """The encoder of a Hub id or a folder, with what was tuned on it; read once in a process.

    None without a name: the built-in screen alone.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigError: no encoder, or one that nothing was tuned on.
    """
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir() and (folder.exists() or given.startswith((".", "/", "~"))):
        raise ConfigError(f"{FLAG}: {given} is not a folder with a model")
    own, shipped = folder / TUNED_NAME, files(__package__).joinpath(TUNED_NAME)
    if not own.is_file() and not shipped.is_file():
        raise ConfigError(
            f"{FLAG}: nothing is tuned for {given}: there is no {TUNED_NAME}",
            hint="tune it: scripts/train_safety --encoder FOLDER --out OUT",
        )
    try:
        tuned = Tuned.read((own if own.is_file() else shipped).read_bytes())
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{FLAG}: {own} is damaged: {error}") from None
    base = str(folder) if folder.is_dir() else given
    if own.is_file() and not (folder / "config.json").is_file():
        base = tuned.base
    return ScreenEncoder(Encoder(base), tuned)


def fingerprint_of(screen_model: str | None) -> dict[str, str]:
    """What manifests hold, and what a run must have in common with the one it continues."""
    model = open_encoder(screen_model)
    return {} if model is None else {"screen_model": model.described}


# --- fitting --------------------------------------------------------------------------------------

N_UPPER, RANK = 4, 16
"""Layers that are changed, and the rank of a change; those below run once."""
EPOCHS, LEARNING_RATE, HEAD_RATE, WARM_UP, STEP_TEXTS = 2, 1e-3, 3e-3, 0.05, 32
RAISED = 4.0
"""Weight of a text in one of the other dangers: a class stands in one text of a hundred."""
_POOLED_STEPS = 32
"""Steps whose texts are sorted by length together."""


class Lesson(NamedTuple):
    """A text to learn from."""

    piece: Piece
    classes: tuple[int | None, ...]
    """Its grade in each group; None where it says nothing of a group."""
    decisive: frozenset[int]
    """Sentences of which one must carry the grade; empty where any may."""


def lower_states(
    encoder: Encoder, pieces: Sequence[Piece], on_step: Callable[[int, int], None]
) -> list[Any]:
    """Hidden states of each piece below the layers that are changed, in 16 bits."""
    import torch

    found: list[Any] = [None] * len(pieces)
    n_done, lengths = 0, [len(piece.ids) for piece in pieces]
    for batch in encoder.batches(lengths):
        with torch.inference_mode():
            hidden, mask = encoder.embed([pieces[place] for place in batch])
            hidden = encoder.run(hidden, mask, 0, encoder.n_lower)
        for row, place in enumerate(batch):
            found[place] = hidden[row, : lengths[place]].to("cpu", torch.float16).clone()
        n_done += len(batch)
        on_step(n_done, len(pieces))
    return found


def fit(
    encoder: Encoder,
    lessons: Sequence[Lesson],
    states: Sequence[Any],
    on_step: Callable[[int, int, float], None],
    seed: int = 0,
) -> tuple[dict[str, tuple[Any, Any]], Any, Any]:
    """The changes by name, and the head's weight and bias; the encoder is left as it was.

    Args:
        states: what `lower_states` gives for the lessons' pieces.
        on_step: called with step, steps in all and loss.
    """
    import torch

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    n_groups = len(lessons[0].classes)
    changes, hooks = _open_changes(encoder)
    head = torch.nn.Linear(encoder.model.config.hidden_size, 3 * n_groups).to(encoder.device)
    low_rank = [part for pair in changes.values() for part in pair]
    optimizer = torch.optim.AdamW(
        [{"params": low_rank, "lr": LEARNING_RATE}, {"params": head.parameters(), "lr": HEAD_RATE}],
        weight_decay=0.01,
    )
    n_steps = EPOCHS * -(-len(lessons) // STEP_TEXTS)

    def rate(step: int) -> float:
        """Up over the first steps, then linearly to 0."""
        warm = WARM_UP * n_steps
        return min((step + 1) / warm, (n_steps - step) / (n_steps - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    upper = encoder.layers[encoder.n_lower :].train()
    step = 0
    for _ in range(EPOCHS):
        for rows in _steps([len(one.piece.ids) for one in lessons], generator):
            loss = _loss(encoder, head, [lessons[n] for n in rows], [states[n] for n in rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*low_rank, *head.parameters()], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            on_step(step, n_steps, float(loss.detach()))
    upper.eval()
    for hook in hooks:
        hook.remove()
    arrays = {name: (_array(up), _array(down)) for name, (up, down) in changes.items()}
    return arrays, _array(head.weight), _array(head.bias)


def _array(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy()


def _open_changes(encoder: Encoder) -> tuple[dict[str, tuple[Any, Any]], list[Any]]:
    """Parameters of a low-rank change of every linear map of the upper layers, at work."""
    import torch

    def adding(up: Any, down: Any) -> Callable[..., Any]:
        return lambda _, given, out: out + (given[0] @ down.T) @ up.T

    changes, hooks = {}, []
    for name, linear in encoder.layers.named_modules():
        is_upper = int(name.partition(".")[0] or -1) >= encoder.n_lower
        if is_upper and isinstance(linear, torch.nn.Linear):
            n_out, n_in = linear.weight.shape
            up = torch.zeros(n_out, RANK, device=encoder.device, requires_grad=True)
            spread = torch.empty(RANK, n_in, device=encoder.device)
            down = spread.uniform_(-(n_in**-0.5), n_in**-0.5).requires_grad_()
            changes[name] = (up, down)
            hooks.append(linear.register_forward_hook(adding(up, down)))
    return changes, hooks


def _steps(lengths: Sequence[int], generator: np.random.Generator) -> Iterator[Ints]:
    """Rows of each step of a pass: texts of like length together, the steps in any order."""
    order = generator.permutation(len(lengths))
    size = _POOLED_STEPS * STEP_TEXTS
    steps = []
    for start in range(0, len(order), size):
        pooled = sorted(order[start : start + size], key=lambda row: lengths[row])
        steps += [np.array(pooled[n : n + STEP_TEXTS]) for n in range(0, len(pooled), STEP_TEXTS)]
    for place in generator.permutation(len(steps)):
        yield steps[place]


def _loss(encoder: Encoder, head: Any, lessons: Sequence[Lesson], states: Sequence[Any]) -> Any:
    """Cross entropy of the texts' grades; a text is what its sentences say together."""
    import torch

    lengths = [len(state) for state in states]
    hidden = torch.nn.utils.rnn.pad_sequence([state.float() for state in states], batch_first=True)
    mask = encoder.mask(lengths, hidden.shape[1])
    hidden = hidden.to(encoder.device)
    hidden = encoder.run(hidden, mask, encoder.n_lower, len(encoder.layers))
    means, owners = pool(hidden, [lesson.piece.sentences for lesson in lessons])
    sums = head(means).reshape(len(owners), -1, 3)
    margins = sums[:, :, 1:] - sums[:, :, :1]
    texts = []
    for row, lesson in enumerate(lessons):
        own = [n for n, (of, _) in enumerate(owners) if of == row]
        few = [n for n in own if owners[n][1] in lesson.decisive]
        together = margins[few or own].logsumexp(dim=0)
        texts.append(torch.cat([torch.zeros_like(together[:, :1]), together], dim=1))
    truth = torch.tensor(
        [[-100 if one is None else one for one in lesson.classes] for lesson in lessons],
        device=encoder.device,
    )
    each = torch.nn.functional.cross_entropy(
        torch.stack(texts).transpose(1, 2), truth, reduction="none", ignore_index=-100
    )
    weight = torch.ones_like(each)
    weight[:, 1:] += (RAISED - 1) * (truth[:, 1:] > 0)
    return (each * weight).sum() / len(lessons)
