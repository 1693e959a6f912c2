"""The optional second model of the screen: a multilingual encoder that reads every sentence.

    model = open_encoder("intfloat/multilingual-e5-small")  # or a local folder of it
    model.read(["药都攒够了。明天见。"])[0].scores[0]  # (sentences, none|concern|explicit)

The text goes through the lower layers of the encoder once, in pieces. A sentence is the mean of its
tokens after two of the layers, so it is graded within what stands around it. What is fitted stands
in `screen_encoder.npz` of this package or of the folder that is named: what is added to the weights
of some layers (LoRA, Hu et al. 2021: a product of two narrow matrices each), and a small network on
the means. The encoder's own file is never changed. `scripts/train_safety --encoder` fits it on
`data/safety`. torch is imported when a model is opened.
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
from typing import Any, NamedTuple

import numpy as np

from cbtqa.errors import ConfigError, require
from cbtqa.files import sha256_of
from cbtqa.paths import replacing
from cbtqa.safety.normalise import Language, fold
from cbtqa.safety.sentence_model import Floats, Window
from cbtqa.statistics.softmax import softmax

FLAG = "--screen-model"
TUNED_NAME = "screen_encoder.npz"
MOST_TOKENS = 160
"""Tokens of a piece; the texts that it was tuned on have at most 155."""
BATCH_TOKENS = 2048
"""Tokens that the encoder reads at a time, padding included."""
PROBE = "今天下班早，和同事去江边走了走。The bus was late again."
LEAST_LIKE_PROBE = 0.7
"""Cosine to what the weights that it was tuned on made of `PROBE`, in deviations from the mean.
Another encoder of the same shape is near 0."""
ADAPTED = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""The matrices of a layer that are added to."""
_OF_ANSWERS = "answers_"
_END = re.compile(r"[。!?\n]+[\"”』)]*|\.+[\"')]*(?=\s|$)")


class Opinion(NamedTuple):
    """What the encoder says of a text."""

    windows: list[Window]
    """Its sentences; only their spans are filled in."""
    scores: list[Floats]
    """A group's probabilities for each sentence. Of a question: suicide, then the dangers in order;
    of an answer one group, safe and the classes of `answers.HARMS`."""


@dataclass(frozen=True)
class AnswerHead:
    """What is fitted on the same means for the sentences of answers."""

    hidden: tuple[Floats, Floats]
    """As `Tuned.hidden`."""
    out: tuple[Floats, Floats]
    """Weight `(classes, units)` and bias; the first class is safe."""
    weighing: Mapping[Language, Floats]
    """`(3,)`: a constant and the weights of two log odds: of an unsafe sentence by the built-in
    model, and by the encoder."""

    def weigh(self, built_in: float, encoder: float, language: Language) -> float:
        """Probability that an answer is unsafe, by the highest of a sentence of both models."""
        given = [1.0, *log_odds([built_in, encoder])]
        return float(1 / (1 + np.exp(-(self.weighing[language] @ given))))


@dataclass(frozen=True)
class Tuned:
    """What is fitted: additions to the encoder's weights, and a network of one hidden layer on the
    means of a sentence."""

    base: str
    """Hub id, or name of the folder, of the encoder that it was fitted on."""
    layers: tuple[int, ...]
    """After which layers of the encoder the means are taken, ascending."""
    mean: Floats
    spread: Floats
    """Of the means in the corpus, `(layers x hidden size,)`."""
    hidden: tuple[Floats, Floats]
    """Weight `(units, layers x hidden size)` and bias of the hidden layer."""
    out: tuple[Floats, Floats]
    """Weight `(3 x groups, units)` and bias."""
    limits: Mapping[Language, tuple[float, float]]
    """From which weighed probability a text is explicit, and a concern; by its language."""
    danger_limits: tuple[float, float, float]
    """From which a danger is reported; from which where a plain wording matches; and share of the
    acute form from which it is acute."""
    weighing: Mapping[Language, Floats]
    """`(2, 5)`: of explicit danger, and of it or a concern, a constant and the weights of four log
    odds: of both by the built-in model, and of both by the encoder."""
    corpus_sha256: str
    probe: Floats
    """What the encoder makes of `PROBE` before anything is added to its weights."""
    answers: AnswerHead
    n_frozen: int
    """Lower layers whose weights stay."""
    additions: Mapping[str, tuple[Floats, Floats]]
    """By `ADAPTED` matrix: `(layers, rank, in)` and `(layers, out, rank)`, whose products are added
    to its weights in the layers above the frozen ones."""

    def save(self, path: Path) -> None:
        weights, plain = dict[str, Floats](), dict[str, Floats]()
        for name, head in (("", self), (_OF_ANSWERS, self.answers)):
            weights |= {f"{name}hidden_weight": head.hidden[0], f"{name}out_weight": head.out[0]}
            plain |= {f"{name}hidden_bias": head.hidden[1], f"{name}out_bias": head.out[1]}
        plain |= {"mean": self.mean, "spread": self.spread, "probe": self.probe}
        for name, (down, up) in self.additions.items():
            weights |= {f"{name} down": down, f"{name} up": up}
        arrays: dict[str, Any] = {
            **{name: array.astype(np.float16) for name, array in weights.items()},
            **{name: array.astype(np.float32) for name, array in plain.items()},
        }
        with replacing(path, is_shared=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                **arrays,
                base=self.base,
                layers=np.array(self.layers),
                limits=np.array([self.limits["zh"], self.limits["en"]]),
                weighing=np.array([self.weighing["zh"], self.weighing["en"]]),
                answers_weighing=np.array([self.answers.weighing[one] for one in ("zh", "en")]),
                danger_limits=np.array(self.danger_limits),
                corpus_sha256=self.corpus_sha256,
                n_frozen=self.n_frozen,
            )

    @classmethod
    def read(cls, content: bytes) -> Tuned:
        """Raises ValueError, KeyError, OSError or BadZipFile for a file of something else."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            zh, en = arrays["limits"].tolist()

            def floats(name: str) -> Floats:
                found: Floats = arrays[name].astype(np.float64)
                return found

            def network(name: str) -> dict[str, Any]:
                return {
                    part: (floats(f"{name}{part}_weight"), floats(f"{name}{part}_bias"))
                    for part in ("hidden", "out")
                }

            def by_language(name: str) -> dict[Language, Floats]:
                return dict(zip(("zh", "en"), floats(name), strict=True))

            layers, n_frozen = arrays["layers"].tolist(), int(arrays["n_frozen"])
            additions = {name: (floats(f"{name} down"), floats(f"{name} up")) for name in ADAPTED}
            for down, up in additions.values():
                if (
                    not len(down) == len(up) == layers[-1] - n_frozen
                    or down.shape[1] != up.shape[2]
                ):
                    raise ValueError("the additions do not fit their layers")
            return cls(
                base=str(arrays["base"]),
                layers=tuple(layers),
                mean=floats("mean"),
                spread=floats("spread"),
                **network(""),
                limits={"zh": tuple(zh), "en": tuple(en)},
                danger_limits=tuple(arrays["danger_limits"].tolist()),
                weighing=by_language("weighing"),
                answers=AnswerHead(
                    **network(_OF_ANSWERS), weighing=by_language("answers_weighing")
                ),
                corpus_sha256=str(arrays["corpus_sha256"]),
                probe=floats("probe"),
                n_frozen=n_frozen,
                additions=additions,
            )

    def scores(self, means: Floats) -> list[Floats]:
        """A group's probabilities for each sentence of a question."""
        sums = _through(self.deviations(means), self)
        sums = sums.reshape(len(means), len(self.out[1]) // 3, 3)
        shares = softmax(sums)
        return [shares[:, group] for group in range(shares.shape[1])]

    def answer_scores(self, means: Floats) -> Floats:
        """Probabilities for each sentence of an answer: safe, and each class of harm."""
        return softmax(_through(self.deviations(means), self.answers))

    def weigh(self, probabilities: Sequence[float], language: Language) -> tuple[float, float]:
        """Probability of explicit danger in a text, and of it or a concern, by both models.

        Args:
            probabilities: the highest of a sentence: both by the built-in model, both by the
                encoder.
        """
        given = [1.0, *log_odds(probabilities)]
        explicit, flagged = 1 / (1 + np.exp(-(self.weighing[language] @ given)))
        return float(explicit), float(flagged)

    def deviations(self, means: Floats) -> Floats:
        """Means of sentences in units of their spread in the corpus."""
        found: Floats = (means - self.mean) / self.spread
        return found


def _through(deviations: Floats, head: Tuned | AnswerHead) -> Floats:
    """What a network of one hidden layer makes of the means of sentences."""
    units = np.maximum(deviations @ head.hidden[0].T + head.hidden[1], 0)
    sums: Floats = units @ head.out[0].T + head.out[1]
    return sums


LEAST_PROBABILITY = 1e-4


def log_odds(probabilities: Sequence[float]) -> Floats:
    """Natural logarithms of the odds; a probability counts as at least 1e-4 from 0 and from 1."""
    bounded = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds: Floats = np.log(bounded / (1 - bounded))
    return odds


def sentence_spans(folded: str) -> list[tuple[int, int]]:
    """Sentences of a folded text, Chinese and English, without the blanks round them."""
    spans, start = [], 0
    for end in (*(match.end() for match in _END.finditer(folded)), len(folded)):
        said = folded[start:end]
        if said.strip():
            spans.append((start + len(said) - len(said.lstrip()), start + len(said.rstrip())))
        start = end
    return spans


class SentenceMeans(NamedTuple):
    """What the encoder makes of a text."""

    spans: list[tuple[int, int]]
    means: Floats
    """`(sentences, layers x hidden size)`."""

    @property
    def windows(self) -> list[Window]:
        return [Window(*span, (), (), ()) for span in self.spans]


class Piece(NamedTuple):
    """A stretch that the encoder reads at once."""

    text: int
    """Place of its text among those given."""
    ids: list[int]
    sentences: list[int]
    """For each token the sentence of the text; -1 for one that belongs to none."""


class Encoder:
    """An encoder with its tokenizer, as it was published."""

    def __init__(self, given: str, flag: str = FLAG) -> None:
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
                f"{flag}: cannot load {given}: {words}",
                hint=f"where there is a network: hf download {given} --local-dir {folder}; "
                f"then {flag} {folder}",
            ) from None
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        if not hasattr(getattr(self.model, "encoder", None), "layer"):
            raise ConfigError(f"{flag}: {given} is no encoder of BERT's kind")
        if not self.tokenizer.is_fast:
            raise ConfigError(f"{flag}: the tokenizer of {given} gives no offsets")
        self.name = Path(given).resolve().name if Path(given).is_dir() else given
        self.weights_sha256 = sha256_of(weights)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device).eval().requires_grad_(False)

    def add(self, n_frozen: int, additions: Mapping[str, tuple[Floats, Floats]]) -> None:
        """Adds what was fitted to the weights in memory; see `Tuned.additions`."""
        import torch

        for name, pair in additions.items():
            for layer, down, up in zip(self.model.encoder.layer[n_frozen:], *pair, strict=False):
                weight = layer.get_submodule(name).weight
                weight += torch.as_tensor(up @ down, dtype=weight.dtype, device=weight.device)

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

    def means(
        self,
        folded: Sequence[str],
        layers: Sequence[int],
        on_step: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[SentenceMeans]:
        """What the encoder makes of the sentences of each text.

        Args:
            layers: after which layers the means are taken, ascending; those above are not run.
        """
        spans, pieces = self.pieces(folded)
        size = len(layers) * int(self.model.config.hidden_size)
        sums = [np.zeros((len(some), size)) for some in spans]
        counts = [np.zeros(len(some)) for some in spans]
        n_done = 0
        for batch in batches_of([len(piece.ids) for piece in pieces]):
            chosen = [pieces[place] for place in batch]
            states = self.states(chosen, layers)
            for row, piece in enumerate(chosen):
                # a long sentence may lie in several pieces
                owners = np.array(piece.sentences)
                for sentence in np.unique(owners[owners >= 0]):
                    own = owners == sentence
                    sums[piece.text][sentence] += states[row, : len(own)][own].sum(axis=0)
                    counts[piece.text][sentence] += own.sum()
            n_done += len(batch)
            on_step(n_done, len(pieces))
        found = []
        for some, total, count in zip(spans, sums, counts, strict=True):
            read = np.flatnonzero(count)
            means = total[read] / count[read, None]
            found.append(SentenceMeans([some[place] for place in read], means))
        return found

    def states(self, pieces: Sequence[Piece], layers: Sequence[int]) -> Floats:
        """What the tokens are after some layers: `(pieces, tokens, layers x hidden size)`."""
        import torch

        lengths = torch.tensor([len(piece.ids) for piece in pieces])
        longest = int(lengths.max())
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([piece.ids + [pad] * (longest - len(piece.ids)) for piece in pieces])
        beyond = torch.arange(longest) >= lengths[:, None]
        # what is added to the attention scores: a great negative number at padding
        mask = (beyond * torch.finfo(torch.float32).min)[:, None, None, :].to(self.device)
        kept = []
        with torch.inference_mode():
            hidden = self.model.embeddings(input_ids=ids.to(self.device))
            for number, layer in enumerate(self.model.encoder.layer[: layers[-1]], 1):
                hidden = layer(hidden, attention_mask=mask)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                if number in layers:
                    kept.append(hidden)
            states: Floats = torch.cat(kept, dim=2).cpu().numpy().astype(np.float64)
        return states


def batches_of(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of pieces of like length, so that little is spent on padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if batch and (len(batch) + 1) * lengths[place] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


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


class ScreenEncoder:
    """An encoder with what was fitted on it."""

    def __init__(self, encoder: Encoder, tuned: Tuned) -> None:
        self.tuned, self._encoder = tuned, encoder
        self.name = encoder.name
        self._check_probe()
        encoder.add(tuned.n_frozen, tuned.additions)
        content = hashlib.sha256(encoder.weights_sha256.encode())
        added = [array for pair in tuned.additions.values() for array in pair]
        heads = *tuned.hidden, *tuned.out, *tuned.answers.hidden, *tuned.answers.out
        for array in (*heads, tuned.mean, tuned.spread, *added):
            content.update(np.ascontiguousarray(array).tobytes())
        content.update(
            repr((tuned.layers, tuned.n_frozen, tuned.limits, tuned.danger_limits)).encode()
        )
        weighed = *tuned.weighing.items(), *tuned.answers.weighing.items()
        content.update(repr([(name, rows.tolist()) for name, rows in weighed]).encode())
        self.sha256 = content.hexdigest()
        """Of the encoder's weights and of what was fitted."""

    @property
    def described(self) -> str:
        """Name and hash, as manifests and signatures hold them."""
        return f"{self.name}@{self.sha256}"

    def _check_probe(self) -> None:
        config, tuned = self._encoder.model.config, self.tuned
        size = len(tuned.layers) * int(config.hidden_size)
        if size == len(tuned.probe) and config.num_hidden_layers >= tuned.layers[-1]:
            found, known = map(
                tuned.deviations, (probe_of(self._encoder, tuned.layers), tuned.probe)
            )
            like = float(found @ known / np.linalg.norm(found) / np.linalg.norm(known))
            if like >= LEAST_LIKE_PROBE:
                return
        raise ConfigError(
            f"{FLAG}: nothing is fitted for {self.name}: these are not the weights of {tuned.base}",
            hint=f"{FLAG} {tuned.base}, or fit your own: scripts/train_safety --encoder",
        )

    def read(self, texts: Sequence[str]) -> list[Opinion]:
        """What the encoder says of each question."""
        return [Opinion(one.windows, self.tuned.scores(one.means)) for one in self.means(texts)]

    def read_answers(self, texts: Sequence[str]) -> list[Opinion]:
        """What the encoder says of each answer."""
        return [
            Opinion(one.windows, [self.tuned.answer_scores(one.means)]) for one in self.means(texts)
        ]

    def means(self, texts: Sequence[str]) -> list[SentenceMeans]:
        """What the tuned encoder makes of the sentences of each text."""
        return self._encoder.means([fold(text) for text in texts], self.tuned.layers)


def probe_of(encoder: Encoder, layers: Sequence[int]) -> Floats:
    """The means of the sentences of `PROBE` together."""
    (found,) = encoder.means([fold(PROBE)], layers)
    mean: Floats = found.means.mean(axis=0)
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
            f"{FLAG}: nothing is fitted for {given}: there is no {TUNED_NAME}",
            hint="fit it: scripts/train_safety --encoder FOLDER --out OUT",
        )
    try:
        tuned = Tuned.read((own if own.is_file() else shipped).read_bytes())
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        if not own.is_file():
            raise ConfigError(
                f"{FLAG}: {TUNED_NAME} of the installed cbtqa is damaged: {error}",
                hint="install cbtqa again; --screen-model itself is not at fault",
            ) from None
        if not isinstance(error, KeyError):
            raise ConfigError(f"{FLAG}: {own} is damaged: {error}") from None
        raise ConfigError(
            f"{FLAG}: {own} was fitted by another version: {error.args[0]}",
            hint="fit it anew: scripts/train_safety --encoder FOLDER --out OUT",
        ) from None
    base = str(folder) if folder.is_dir() else given
    if own.is_file() and not (folder / "config.json").is_file():
        base = tuned.base
    return ScreenEncoder(Encoder(base), tuned)


def fingerprint_of(screen_model: str | None) -> dict[str, str]:
    """What manifests hold, and what a run must have in common with the one it continues."""
    model = open_encoder(screen_model)
    return {} if model is None else {"screen_model": model.described}
