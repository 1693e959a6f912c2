"""The fit of what `cbtqa.safety.encoder` adds to an encoder, on texts with grades.

    fit = Fit(Encoder("multilingual-e5-small"), texts, n_groups=9)
    fit.learn(lessons, n_epochs=3)
    Tuned(**fit.fitted(), ...)

Low-rank additions (LoRA) to the upper layers that are read, and a small network on the means of the
sentences, learn together. `scripts/train_safety --encoder` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cbtqa.safety.encoder import ADAPTED, AnswerHead, Encoder, Piece, Tuned, batches_of
from cbtqa.safety.normalise import Language
from cbtqa.safety.sentence_model import Floats

LAYERS = (6, 8)
"""Of the 12 of multilingual-e5-small; those above would cost a third of the time."""
N_FROZEN = 4
RANK, RATE, WARM_STEPS = 16, 1e-3, 60
UNITS, DROPOUT, INNER_DROPOUT, DECAY, STEP_TEXTS = 256, 0.2, 0.1, 0.05, 32
RAISED = 4.0
"""Weight of a text in one of the other dangers: a class stands in one text of a hundred."""
HEAD_DROPOUT, HEAD_EPOCHS, HEAD_STEP = 0.3, 8, 128
"""Of the network for answers; steps are sentences."""
_HIGHEST = 30.0
_MEASURED_TEXTS = 768
"""Texts that the means' spread is taken from."""


class Lesson(NamedTuple):
    """A text to learn from."""

    text: int
    """Its place among the texts of the fit."""
    sentences: Sequence[int]
    """Those of which one must carry the grade."""
    classes: tuple[int | None, ...]
    """Its grade in each group; None where it says nothing of a group."""
    pair: tuple[str, str]
    """Texts of one pair are learned in one step."""


ENCODER_ALONE: Mapping[Language, Floats] = dict.fromkeys(
    ("zh", "en"), np.array([[0.0, 0, 0, 1, 0], [0.0, 0, 0, 0, 1]])
)
"""`Tuned.weighing` that leaves the built-in model out."""
BUILT_IN_ALONE: Mapping[Language, Floats] = dict.fromkeys(("zh", "en"), np.array([0.0, 1, 0]))
"""`AnswerHead.weighing` that leaves the encoder out."""
WEIGHING_RIDGE = 0.04


def fit_weighing(
    odds: Floats, grades: Sequence[int], languages: Sequence[Language], minimize: Callable[..., Any]
) -> dict[Language, Floats]:
    """`Tuned.weighing`: two logistic regressions, the weights shared by both languages.

    Args:
        odds: of texts that neither model was fitted on, `(texts, 4)`, as `Tuned.weigh` takes them.
        grades: 0 none, 1 concern, 2 explicit.
        minimize: `scipy.optimize.minimize`.
    """
    each = [_logistic(odds, np.array(grades) >= least, languages, minimize) for least in (2, 1)]
    return {language: np.array([rows[language] for rows in each]) for language in each[0]}


def _logistic(
    odds: Floats, truth: Any, languages: Sequence[Language], minimize: Callable[..., Any]
) -> dict[Language, list[float]]:
    """Constant and weights by language; only the constant differs between languages."""
    is_zh = np.array([one == "zh" for one in languages], float)
    given = np.column_stack([np.ones(len(odds)), is_zh, odds])
    signs = np.where(truth, 1.0, -1.0)

    def loss(weights: Floats) -> float:
        errors = np.logaddexp(0, -signs * (given @ weights)).sum()
        return float(errors + WEIGHING_RIDGE / 2 * (weights[2:] ** 2).sum())

    constant, more_in_zh, *shared = minimize(loss, np.zeros(given.shape[1])).x
    return {"zh": [constant + more_in_zh, *shared], "en": [constant, *shared]}


def fit_answer_weighing(
    odds: Floats,
    is_unsafe: Sequence[bool],
    languages: Sequence[Language],
    minimize: Callable[..., Any],
) -> dict[Language, Floats]:
    """`AnswerHead.weighing`, the weights of the odds shared by both languages.

    Args:
        odds: of answers that neither model was fitted on, `(answers, 2)`.
        minimize: `scipy.optimize.minimize`.
    """
    rows = _logistic(odds, np.array(is_unsafe), languages, minimize)
    return {language: np.array(row) for language, row in rows.items()}


def fit_answer_head(
    deviations: Floats, classes: Sequence[int], n_classes: int, seed: int = 0
) -> dict[str, tuple[Floats, Floats]]:
    """`AnswerHead.hidden` and `out`: a network on what the encoder makes of sentences.

    Args:
        deviations: `Tuned.deviations` of the sentences, `(sentences, layers x hidden size)`.
        classes: of each sentence; 0 is safe.
    """
    import torch

    torch.manual_seed(seed)
    first = torch.nn.Linear(deviations.shape[1], UNITS)
    last = torch.nn.Linear(UNITS, n_classes)
    drop = torch.nn.Dropout(HEAD_DROPOUT)
    network = torch.nn.Sequential(drop, first, torch.nn.ReLU(), drop, last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    given, truth = torch.tensor(deviations).float(), torch.tensor(classes)
    for _ in range(HEAD_EPOCHS):
        for step in torch.randperm(len(given)).split(HEAD_STEP):
            loss = torch.nn.functional.cross_entropy(network(given[step]), truth[step])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"hidden": _plain_layer(first), "out": _plain_layer(last)}


def _plain(given: Any) -> Floats:
    found: Floats = given.detach().numpy().astype(np.float64)
    return found


def _plain_layer(layer: Any) -> tuple[Floats, Floats]:
    return _plain(layer.weight), _plain(layer.bias)


def unfitted_head(size: int) -> AnswerHead:
    """Of a fit that knows questions alone: the built-in model decides."""
    hidden, out = (np.zeros((1, size)), np.zeros(1)), (np.zeros((2, 1)), np.zeros(2))
    return AnswerHead(hidden, out, BUILT_IN_ALONE)


class Fit:
    """Additions to an encoder's upper layers, and the network on its sentences, being fitted.

    What the frozen layers make of the texts is computed once. The weights of the encoder itself
    stay as they are.
    """

    def __init__(
        self,
        encoder: Encoder,
        folded: Sequence[str],
        n_groups: int,
        *,
        layers: tuple[int, ...] = LAYERS,
        n_frozen: int = N_FROZEN,
        on_step: Callable[[int, int], None] = lambda done, of: None,
        start: Tuned | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            start: what was fitted before, of the same layers and groups; the fit goes on from it.
        """
        import torch

        torch.manual_seed(seed)
        self._generator = np.random.default_rng(seed)
        self.layers, self.n_frozen, self._n_groups = layers, n_frozen, n_groups
        self._spans, self._pieces = encoder.pieces(folded)
        self._below = _states_below(encoder, self._pieces, n_frozen, on_step)
        self._pieces_of: list[list[int]] = [[] for _ in folded]
        for number, piece in enumerate(self._pieces):
            self._pieces_of[piece.text].append(number)
        some = self._generator.permutation(len(folded))[:_MEASURED_TEXTS]
        means = np.vstack([one.means for one in encoder.means([folded[n] for n in some], layers)])
        self.mean, self.spread = means.mean(axis=0), means.std(axis=0) + 1e-3
        drop = torch.nn.Dropout(DROPOUT)
        self._first = torch.nn.Linear(means.shape[1], UNITS)
        self._last = torch.nn.Linear(UNITS, 3 * n_groups)
        self._network = torch.nn.Sequential(drop, self._first, torch.nn.ReLU(), drop, self._last)
        self._layers = list(encoder.model.encoder.layer[n_frozen : layers[-1]])
        self._added = [
            {name: _new_addition(layer.get_submodule(name)) for name in ADAPTED}
            for layer in self._layers
        ]
        narrow = [one for added in self._added for pair in added.values() for one in pair]
        self._optimizer = torch.optim.AdamW(
            [{"params": narrow}, {"params": list(self._network.parameters())}],
            betas=(0.9, 0.98),
            weight_decay=DECAY,
        )
        self._narrow = narrow
        if start is not None:
            self._take_over(start)

    def _take_over(self, start: Tuned) -> None:
        import torch

        self.mean, self.spread = start.mean, start.spread
        with torch.no_grad():
            for own, known in ((self._first, start.hidden), (self._last, start.out)):
                own.weight.copy_(torch.as_tensor(known[0]))
                own.bias.copy_(torch.as_tensor(known[1]))
            for name, pair in start.additions.items():
                for added, *known in zip(self._added, *pair, strict=True):
                    for own, given in zip(added[name], known, strict=True):
                        own.copy_(torch.as_tensor(given))

    def learn(
        self,
        lessons: Sequence[Lesson],
        n_epochs: int,
        rate: float = 1.0,
        on_step: Callable[[int, int, float], None] = lambda step, of, loss: None,
    ) -> None:
        """Goes through the lessons some times.

        A text says of a class what its sentences say together (the logarithm of the sum of their
        odds); it is the worst sentence that counts when texts are graded.

        Args:
            rate: how fast it begins, as a share of `RATE`; it falls to nothing.
            on_step: called with step, steps in all and loss.
        """
        import torch

        pairs: dict[tuple[str, str], list[Lesson]] = {}
        for lesson in lessons:
            pairs.setdefault(lesson.pair, []).append(lesson)
        groups, steps = list(pairs.values()), []
        for _ in range(n_epochs):
            order = [one for n in self._generator.permutation(len(groups)) for one in groups[n]]
            steps += [order[n : n + STEP_TEXTS] for n in range(0, len(order), STEP_TEXTS)]
        for number, step in enumerate(steps):
            for group in self._optimizer.param_groups:
                warm = min(1.0, (number + 1) / WARM_STEPS)
                group["lr"] = RATE * rate * warm * (1 - number / len(steps))
            loss = self._loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._narrow, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
            on_step(number + 1, len(steps), float(loss.detach()))

    def fitted(self) -> dict[str, Any]:
        """The fitted fields of `Tuned`."""

        additions = {
            name: (
                np.stack([_plain(added[name][0]) for added in self._added]),
                np.stack([_plain(added[name][1]) for added in self._added]),
            )
            for name in ADAPTED
        }
        heads = {"hidden": _plain_layer(self._first), "out": _plain_layer(self._last)}
        fields = {"mean": self.mean, "spread": self.spread, **heads}
        own = {"layers": self.layers, "n_frozen": self.n_frozen, "additions": additions}
        return {**fields, **own}

    def _loss(self, lessons: Sequence[Lesson]) -> Any:
        """Cross entropy of the texts' grades, a mean over the texts."""
        import torch

        means, first_rows = self._means([lesson.text for lesson in lessons])
        rows = torch.tensor(
            [first_rows[one.text] + sentence for one in lessons for sentence in one.sentences]
        )
        owners = torch.tensor([n for n, lesson in enumerate(lessons) for _ in lesson.sentences])
        given = (means[rows] - torch.tensor(self.mean)) / torch.tensor(self.spread)
        sums = self._network(given.float()).reshape(len(rows), self._n_groups, 3)
        odds = (sums[:, :, 1:] - sums[:, :, :1]).clamp(-_HIGHEST, _HIGHEST).exp()
        together = torch.zeros(len(lessons), *odds.shape[1:]).index_add(0, owners, odds).log()
        texts = torch.cat([torch.zeros_like(together[:, :, :1]), together], dim=2)
        truth = torch.tensor(
            [[-100 if one is None else one for one in lesson.classes] for lesson in lessons]
        )
        each = torch.nn.functional.cross_entropy(
            texts.transpose(1, 2), truth, reduction="none", ignore_index=-100
        )
        weight = torch.ones_like(each)
        weight[:, 1:] += (RAISED - 1) * (truth[:, 1:] > 0)
        return (each * weight).sum() / len(lessons)

    def _means(self, texts: Sequence[int]) -> tuple[Any, dict[int, int]]:
        """Means of the sentences of some texts, and the row of each text's first sentence."""
        import torch

        first_rows, n_rows = {}, 0
        for text in texts:
            first_rows[text] = n_rows
            n_rows += len(self._spans[text])
        numbers = [number for text in texts for number in self._pieces_of[text]]
        owners = []
        for piece in (self._pieces[number] for number in numbers):
            own = np.array(piece.sentences)
            owners.append(np.where(own < 0, n_rows, own + first_rows[piece.text]))
        rows = torch.tensor(np.concatenate(owners))
        hidden = torch.tensor(np.concatenate([self._below[number] for number in numbers])).float()
        packed = _Packed([len(one) for one in owners])
        kept = [hidden] if self.n_frozen in self.layers else []
        for number, (layer, added) in enumerate(
            zip(self._layers, self._added, strict=True), self.n_frozen + 1
        ):
            hidden = packed.through(layer, added, hidden)
            kept += [hidden] if number in self.layers else []
        states = torch.cat(kept, dim=1)
        sums = torch.zeros(n_rows + 1, states.shape[1]).index_add(0, rows, states)[:n_rows]
        counts = torch.bincount(rows, minlength=n_rows + 1)[:n_rows, None]
        return sums / counts.clamp(min=1), first_rows


def _states_below(
    encoder: Encoder, pieces: Sequence[Piece], n_frozen: int, on_step: Callable[[int, int], None]
) -> list[Any]:
    """What the tokens of each piece are above the frozen layers, `(tokens, hidden size)`."""
    found: list[Any] = [None] * len(pieces)
    n_done = 0
    for batch in batches_of([len(piece.ids) for piece in pieces]):
        states = encoder.states([pieces[place] for place in batch], (n_frozen,))
        for place, own in zip(batch, states, strict=True):
            found[place] = own[: len(pieces[place].ids)].astype(np.float16)
        n_done += len(batch)
        on_step(n_done, len(pieces))
    return found


def _new_addition(linear: Any) -> tuple[Any, Any]:
    """Narrow matrices whose product is nothing at first."""
    import torch

    down = torch.randn(RANK, linear.in_features) / linear.in_features**0.5
    up = torch.zeros(linear.out_features, RANK)
    return down.requires_grad_(), up.requires_grad_()


class _Packed:
    """Pieces that lie one after another without padding, as a layer of BERT's kind reads them."""

    def __init__(self, lengths: Sequence[int]) -> None:
        import torch

        self._shape = len(lengths), max(lengths)
        inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        self._places = inside.flatten().nonzero().flatten()
        self._mask = inside[:, None, None, :]

    def through(self, layer: Any, added: Mapping[str, tuple[Any, Any]], hidden: Any) -> Any:
        """The states after a layer and what is added to it, with dropout as in training."""
        from torch.nn import functional

        def linear(name: str, given: Any) -> Any:
            down, up = added[name]
            narrow = functional.linear(functional.linear(given, down), up)
            return layer.get_submodule(name)(given) + narrow

        def dropped(given: Any) -> Any:
            return functional.dropout(given, INNER_DROPOUT)

        heads = [self._padded(layer, linear(name, hidden)) for name in ADAPTED[:3]]
        seen = functional.scaled_dot_product_attention(*heads, attn_mask=self._mask)
        seen = seen.transpose(1, 2).reshape(self._shape[0] * self._shape[1], -1)[self._places]
        after = layer.attention.output.LayerNorm(hidden + dropped(linear(ADAPTED[3], seen)))
        inner = layer.intermediate.intermediate_act_fn(linear(ADAPTED[4], after))
        return layer.output.LayerNorm(after + dropped(linear(ADAPTED[5], inner)))

    def _padded(self, layer: Any, given: Any) -> Any:
        n_pieces, longest = self._shape
        own = layer.attention.self
        size = given.shape[1]
        padded = given.new_zeros(n_pieces * longest, size).index_copy(0, self._places, given)
        heads = own.num_attention_heads
        return padded.view(n_pieces, longest, heads, size // heads).transpose(1, 2)
