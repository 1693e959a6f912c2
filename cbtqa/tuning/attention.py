"""Attention in which packed documents do not see each other, without flash-attn and without a mask.

Registered with transformers under a name without "flash", for which transformers would look for a
kernel package. On CUDA it is `torch.nn.attention.varlen`, elsewhere (and for float32) one causal
SDPA call per document. `cu_seq_lens_q` gives the documents' boundaries; without, a row is one.

transformers' own attention guesses boundaries from positions that restart, and mixes documents when
a mask is given or a cache is used: so positions restart, without mask or cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from cbtqa.tuning.libraries import FAULTS, first_line, is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENTS = "cbtqa_documents"
"""The name to give as `attn_implementation`."""
_HALF = (torch.float16, torch.bfloat16)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to their size, that rounding alone explains."""


def register_attention() -> str:
    """Makes the attention known to transformers; gives its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(DOCUMENTS, attend)
    AttentionMaskInterface.register(DOCUMENTS, _no_mask)
    return DOCUMENTS


def _no_mask(*_: Any, **__: Any) -> None:
    """In place of transformers' mask builder, whose dense (tokens, tokens) mask is not needed."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over `(rows, heads, tokens, width)`; gives `(rows, tokens, heads, width)`.

    Args:
        cu_seq_lens_q: int32, shape (documents + 1,): where each document begins in the one row.
        max_length_q: tokens of the longest document.

    Raises:
        NotImplementedError: the model caps its scores or adds sinks, which no kernel here does.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with capped scores or sinks")
    states = (query, key, value)
    if cu_seq_lens_q is None:
        attended = _one_document(*states, scaling, dropout, sliding_window)
        return attended.transpose(1, 2).contiguous(), None
    if query.is_cuda and query.dtype in _HALF and not dropout:
        return _varlen(*states, scaling, sliding_window, cu_seq_lens_q, max_length_q), None
    lengths = cu_seq_lens_q.diff().tolist()
    documents = zip(*(torch.split(part, lengths, 2) for part in states), strict=True)
    parts = [_one_document(q, k, v, scaling, dropout, sliding_window) for q, k, v in documents]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _one_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    n_queries, n_keys = query.shape[2], key.shape[2]
    mask = None
    if (window is not None and n_keys > window) or 1 < n_queries < n_keys:
        # True where a query sees a key: not later, and within the window; the last query is last
        first, device = n_keys - n_queries, query.device
        places = torch.arange(n_keys, device=device)
        distance = torch.arange(first, n_keys, device=device)[:, None] - places
        mask = (distance >= 0) & (distance < (window or n_keys))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and n_queries > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    starts: Tensor,
    longest: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    limit = int(longest or q.shape[0])
    words: dict[str, Any] = {"scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
    size = (-1 if window is None else window - 1, 0)
    attended = varlen_attn(q, k, v, starts, starts, limit, limit, window_size=size, **words)
    assert isinstance(attended, torch.Tensor)
    return attended[None]


def pack_inputs(
    documents: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The model inputs of one packed row: ids, restarting positions, boundaries."""
    lengths = torch.tensor([len(ids) for ids in documents])
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device)
    longest = int(lengths.max())
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(documents))], device=device),
        "position_ids": torch.cat([torch.arange(int(n)) for n in lengths])[None].to(device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
        # for convolutions, which no boundaries can be given to: the document of each token
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
        .to(torch.int32)
        .to(device),
        "use_cache": False,
    }


# --- what a model can do -------------------------------------------------------------------------

_APART = {"full_attention", "sliding_attention"}
"""Kinds of layers that attend through transformers' interface, and so through `attend`."""
_LINEAR = "linear_attention"
FLA = "fla"
"""Module of flash-linear-attention, whose kernels know where packed documents begin."""


def reason_to_pad(config: Any) -> str | None:
    """Why a model of this configuration is not even tried on packed rows; None where it is."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kinds = set(getattr(config.get_text_config(), "layer_types", None) or _APART)
    if _LINEAR in kinds and find_spec(FLA) is None:
        return (
            "linear attention keeps packed documents apart with flash-linear-attention only: "
            "pip install 'cbtqa[fla]'"
        )
    if others := sorted(kinds - _APART - {_LINEAR}):
        return f"layers of kind {others[0]} do not keep packed documents apart"
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if known else None
    if not getattr(made, "_supports_attention_backend", True):
        return "its class attends by code of its own"
    source = sys.modules[made.__module__] if made else None
    if any(_PAD_POSITIONS in (name, *vars(one)) for name, one in _parts_of(source)):
        return "its positions follow from the padding token and do not restart"
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if capped or not getattr(made, "_supports_sdpa", True):
        return "its attention has caps or sinks, which torch's kernels do not do"
    return None


_PAD_POSITIONS = "create_position_ids_from_input_ids"
"""What classes after RoBERTa have."""


def _parts_of(module: Any) -> list[tuple[str, Any]]:
    """Functions and classes of a module, by name."""
    return [(name, one) for name, one in vars(module or object).items() if hasattr(one, "__dict__")]


def pack_if_apart(model: Any) -> str | None:
    """Sets the attention for packed rows, if documents stay apart under it; else says why not.

    Proven on the model itself: two packed documents have the logits that each has alone under the
    model's own attention, which is left in place otherwise.
    """
    reason = reason_to_pad(model.config)
    if reason is not None:
        return reason
    own = model.config._attn_implementation
    documents = [[(17 * k + 3) % _n_ids(model) for k in range(n)] for n in (7, 12)]
    try:
        alone = torch.cat([_logits(model, **_one_row(ids, model)) for ids in documents])
        model.set_attn_implementation(register_attention())
        packed = _logits(model, **pack_inputs(documents, model.device))
        is_apart = _is_close(packed, alone)
        reason = None if is_apart else "packed documents see each other in it"
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        reason = f"its code takes no packed documents ({first_line(error)[:160]})"
    if reason is not None:
        model.set_attn_implementation(own)
    return reason


def why_not_causal(model: Any) -> str | None:
    """Why a model cannot be trained to answer token by token, or None.

    Its logits must follow from token ids alone, and those of a token not from later tokens.
    """
    ids = [(11 * k + 5) % _n_ids(model) for k in range(12)]
    other = [*ids[:-1], (ids[-1] + 1) % _n_ids(model)]
    try:
        first, second = (_logits(model, **_one_row(one, model)) for one in (ids, other))
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        return f"it gives no logits for token ids alone ({first_line(error)[:160]})"
    if len(first) != len(ids):
        return f"it gives {len(first)} rows of logits for {len(ids)} tokens"
    if not _is_close(first[:-1], second[:-1]):
        return "what it says of a token depends on later tokens: it is no causal model"
    return None


def why_unusable(model: Any) -> str | None:
    """Why a model takes no text of any length in training, or cannot be asked; None where both go.

    Random numbers are spent where it has dropout.
    """
    row = _one_row([(11 * k + 5) % _n_ids(model) for k in range(67)], model)
    asked = {"input_ids": row["input_ids"], "attention_mask": torch.ones_like(row["input_ids"])}
    stage, was_training = "train", model.training
    try:
        with torch.no_grad():
            model.train()(**row)
        model.train(was_training)
        stage = "generate"
        model.generate(**asked, max_new_tokens=2)
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        return f"its class does not {stage} with a plain text ({first_line(error)[:160]})"
    finally:
        model.train(was_training)
    return None


def _n_ids(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _one_row(ids: list[int], model: Any) -> dict[str, Any]:
    return {"input_ids": torch.tensor([ids], device=model.device), "use_cache": False}


def _logits(model: Any, **inputs: Any) -> Tensor:
    """Of the one row, shape (tokens, vocabulary)."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found: Tensor = model(**inputs).logits[0]
    finally:
        model.train(was_training)
    return found


def _is_close(found: Tensor, expected: Tensor) -> bool:
    difference = (found.float() - expected.float()).norm()
    tolerance = _TOLERANCE.get(expected.dtype, 1e-1)
    return bool(difference <= tolerance * expected.float().norm())
