"""Counts what one training step of a shape takes, without its weights and without a GPU.

The model is built on the meta device with its adapters, and one micro-batch goes forward and
backward under the meters, at two depths from which all others follow:

    count = count_shape(to_config(find_backbone("baichuan")), LoraConfig(r=16, ...))
    count.plain.saved_per_token / 2**20          # 5.2 MiB
    count.n_trainable                      # 39,976,960

Not counted: the CUDA context, kernels' workspaces and the allocator's unused rests; `estimate`
states what it adds for them.
"""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from cbtqa.tuning.libraries import FAULTS, first_line
from cbtqa.tuning.loading import EXPERTS, complete_targets, not_made, with_adapter
from cbtqa.tuning.losses import head_log_probs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


N_TOKENS = 1021
"""Tokens of the counted micro-batch. A prime: a storage whose size it divides holds tokens."""
ATTENTION = "cbtqa-counted"
DEPTHS = (2, 3)
"""Layers of the models whose passes are counted; a first and a last layer may differ."""


@dataclass(frozen=True)
class PassCount:
    """Bytes of activations in one forward and backward pass, the head left out."""

    saved_per_token: float
    """Kept for the backward pass."""
    saved_fixed: float
    """Kept whatever the number of tokens: adapters cast for the matrix products."""
    peak_per_token: float
    """The highest sum alive at once, temporaries included."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model that decide its arithmetic."""

    body_weights: int
    """Numbers in the layers' matrices, which every token is multiplied with; of experts those
    that it is sent to."""
    adapter_weights: int
    """Numbers in the adapters' matrices."""
    n_layers: int
    """Layers in which every token attends to all before it; linear attention is none."""
    hidden: int
    attention_width: int
    """Heads times their size."""
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> ModelSizes:
        """Counted on a model with adapters, quantised or not."""
        config = model.config.get_text_config()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head, share = base.get_output_embeddings(), _share_of_experts(config)
        body = 0.0
        for name, module in base.named_modules():
            layer = getattr(module, "base_layer", module)
            part = share if EXPERTS.search(f"{name}.") else 1.0
            if ".lora_" in name or name.endswith("base_layer") or layer is head:
                continue
            if isinstance(layer, nn.Linear):
                body += part * layer.in_features * layer.out_features
            elif hasattr(layer, "nf"):  # transformers' Conv1D, a linear layer of GPT-2
                body += layer.nx * layer.nf
        body += share * _numbers(_experts_of(base))
        vocabulary, hidden = base.get_input_embeddings().weight.shape
        n_heads = _size(config, "num_attention_heads") or 1
        kinds = getattr(config, "layer_types", None) or ()
        n_linear = sum("attention" not in kind or "linear" in kind for kind in kinds)
        matrices = (p for p in model.parameters() if p.requires_grad and p.dim() == 2)
        return cls(
            body_weights=round(body),
            adapter_weights=_numbers(matrices),
            n_layers=len(_layers_of(base)) - n_linear,
            hidden=hidden,
            attention_width=(_size(config, "head_dim") or hidden // n_heads) * n_heads,
            vocabulary=vocabulary,
        )


def _size(config: Any, name: str) -> int | None:
    """A size by its name; None where a configuration has none, or one for each layer."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers', where the layers differ in it
        return None
    return value if isinstance(value, int) and value > 0 else None


def _experts_of(model: nn.Module) -> list[Tensor]:
    """Weights of experts that are one block, shape (experts, rows, columns)."""
    return [p for n, p in model.named_parameters() if p.dim() == 3 and EXPERTS.search(n)]


def _share_of_experts(config: Any) -> float:
    """Share of the experts that a token is sent to."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    n_experts = next((n for one in names if (n := _size(config, one))), 0)
    n_used = _size(config, "num_experts_per_tok")
    return min(1.0, n_used / n_experts) if n_experts and n_used else 1.0


def _layers_of(model: nn.Module) -> nn.ModuleList:
    """The list of modules that holds most weights: the model's layers."""
    lists = (one for one in model.modules() if isinstance(one, nn.ModuleList))
    return max(lists, key=lambda one: _numbers(one.parameters()), default=nn.ModuleList())


@dataclass(frozen=True)
class ShapeCount(ModelSizes):
    """Sizes of a model with adapters, and what its passes keep."""

    n_frozen: int
    n_trainable: int
    frozen_bytes: int
    """At the dtype the weights are loaded in."""
    trainable_bytes: int
    adapted_weights: int
    """Numbers in frozen matrices that have an adapter: what QLoRA holds in 4 bits."""
    weight_width: int
    """Bytes of one frozen number."""
    largest_matrix: int
    """Numbers in the largest adapted matrix."""
    layer_bytes: int
    """Weights of the largest layer: what FSDP gathers at a time."""
    plain: PassCount
    recomputed: PassCount
    """With gradient checkpointing: layers keep their input and run twice."""
    by_formula: str | None = None
    """Why the passes are estimated by `_passes_by_formula`; None where they were counted."""


def count_shape(
    config: Any,
    lora: Any,
    *,
    dtype: torch.dtype = torch.bfloat16,
    upcasts: bool = False,
    autocasts: bool = True,
) -> ShapeCount:
    """Counts a shape with adapters.

    Args:
        config: transformers' configuration of the real size.
        lora: a `peft.LoraConfig`.
        dtype: of the frozen weights, and of the matrix products under `autocasts`.
        upcasts: True as PEFT does by default: the input of every adapter becomes 32 bits wide.
        autocasts: True under automatic mixed precision, as transformers' Trainer runs.
    """
    model = build_on_meta(config, lora, dtype)
    compute, by_formula = dtype if autocasts else None, None
    try:
        plain, recomputed = _count_passes(config, lora, dtype, compute, upcasts)
    except FAULTS as error:
        by_formula = first_line(error)[:160]
        plain, recomputed = _passes_by_formula(model, dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    adapted = [
        module.get_param() if hasattr(module, "get_param") else module.base_layer.weight
        for module in model.modules()
        if hasattr(module, "lora_A")
    ]
    layers = _layers_of(model.get_base_model())
    return ShapeCount(
        n_frozen=_numbers(frozen),
        n_trainable=_numbers(trained),
        frozen_bytes=_bytes(frozen),
        trainable_bytes=_bytes(trained),
        adapted_weights=_numbers(adapted),
        weight_width=dtype.itemsize,
        largest_matrix=max(weight.numel() for weight in adapted),
        layer_bytes=max(_bytes(layer.parameters()) for layer in layers),
        **vars(ModelSizes.of(model)),
        plain=plain,
        recomputed=recomputed,
        by_formula=by_formula,
    )


_counts: dict[tuple[str, ...], ShapeCount] = {}


def count_once(config: Any, lora: Any, dtype: torch.dtype) -> ShapeCount:
    """`count_shape` under autocast, counted once in a process for the same shape and adapters.

    A count takes one to three seconds, and several dry runs of a model differ in their data alone.
    """
    plain = json.dumps(lora.to_dict(), default=repr, sort_keys=True)
    sizes = config.to_json_string(use_diff=False)
    key = (type(config).__qualname__, sizes, plain, str(dtype))
    if key not in _counts:
        _counts[key] = count_shape(config, lora, dtype=dtype)
    return _counts[key]


KEPT_PER_OUTPUT = 2.2
"""Numbers kept for the backward pass per output of a layer's matrices. measured: 2.0 to 2.4 on five
listed shapes; a test holds the formula to 15 %."""
ABOVE = {"plain": 0.6, "recomputed": 1.4}
"""What is alive at once above what is kept, in layers. measured: 0.4 to 0.6, 1.3 to 1.5."""


def _passes_by_formula(model: Any, dtype: torch.dtype) -> tuple[PassCount, PassCount]:
    """Plain, and recomputed, of a class that cannot run without content."""
    base = model.get_base_model()
    layers, share = _layers_of(base), _share_of_experts(base.config.get_text_config())
    outputs = sum(share * block.shape[0] * min(block.shape[1:]) for block in _experts_of(layers))
    for name, module in layers.named_modules():
        layer = getattr(module, "base_layer", module)
        width = layer.out_features if isinstance(layer, nn.Linear) else getattr(layer, "nf", 0)
        if width and ".lora_" not in name and layer is module:
            outputs += (share if EXPERTS.search(name) else 1.0) * width
    kept = KEPT_PER_OUTPUT * outputs * dtype.itemsize
    one_layer = kept / max(1, len(layers))
    # of each layer, and of the norms before the first and after the last
    inputs = base.get_input_embeddings().weight.shape[1] * dtype.itemsize * (len(layers) + 2)
    fixed = _numbers(p for p in model.parameters() if p.requires_grad) * dtype.itemsize
    plain = PassCount(kept, fixed, kept + ABOVE["plain"] * one_layer)
    return plain, PassCount(inputs, fixed, inputs + ABOVE["recomputed"] * one_layer)


def count_head(
    hidden: int, vocabulary: int, n_labelled: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Bytes of the highest sum alive at once in the head's loss, over what the body keeps."""
    with FakeTensorMode():  # not meta: the loss asks for autocast, which meta tensors have not
        states = torch.empty(n_labelled, hidden, dtype=dtype, requires_grad=True)
        head = torch.empty(vocabulary, hidden, dtype=dtype)
        targets = torch.empty(n_labelled, dtype=torch.long)
        live = LiveBytes(states, head, targets)
        with live:
            # gathered from all positions first, as in training
            loss = head_log_probs(states[targets], head, targets).sum()
            torch.autograd.backward(loss)
    return live.peak


def build_on_meta(config: Any, lora: Any, dtype: torch.dtype) -> Any:
    """The model with adapters in training mode, without content."""
    config, lora = copy.deepcopy(config), copy.deepcopy(lora)
    config._attn_implementation = ATTENTION
    config.quantization_config = None  # 4 bits are added up by `estimate`
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM
        try:
            try:
                bare = made.from_config(config, dtype=dtype)
            except KeyError:  # the class knows attention by names of its own
                config._attn_implementation = "eager"
                bare = made.from_config(config, dtype=dtype)
        except FAULTS as error:
            raise not_made(config.model_type, error) from None
        name = type(bare).__name__
        return with_adapter(bare, complete_targets(bare, lora, name), name).train()


class _Kernel(torch.autograd.Function):
    """Keeps what a flash kernel keeps: queries, keys, values, result, log-sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    apply: Any = _Kernel.apply
    return apply(*(tensor.transpose(1, 2) for tensor in (query, key, value))), None


def _behave_like_cuda(model: nn.Module, compute: torch.dtype | None) -> None:
    """Makes meta tensors keep what CUDA tensors would: autocast, and dropout's mask in bytes.

    torch's own autocast does not act on meta tensors, and their dropout keeps its mask as floats.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = partial(_drop, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear) and compute and module.weight.dtype != compute:
            module.forward = partial(_multiply, module, compute)  # type: ignore[method-assign]


def _drop(module: nn.Dropout, tensor: Tensor) -> Tensor:
    return torch.native_dropout(tensor, module.p, module.training)[0]


def _multiply(module: nn.Linear, compute: torch.dtype, tensor: Tensor) -> Tensor:
    return nn.functional.linear(tensor.to(compute), module.weight.to(compute))


def _count_passes(
    config: Any, lora: Any, dtype: torch.dtype, compute: torch.dtype | None, upcasts: bool
) -> tuple[PassCount, PassCount]:
    """Plain, and with every layer recomputed."""
    kinds = set(getattr(config, "layer_types", None) or ["one"])
    if len(kinds) > 1 or getattr(config, "num_hidden_layers", 0) <= max(DEPTHS):
        return _count_both(config, lora, dtype, compute, upcasts)
    # layers of one kind add the same each: all depths follow from two, in a tenth of the time
    counts = []
    for depth in DEPTHS:
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            shallow.layer_types = config.layer_types[:depth]
        counts.append(_count_both(shallow, lora, dtype, compute, upcasts))
    n_steps = (config.num_hidden_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    plain, recomputed = (
        PassCount(*(a + n_steps * (b - a) for a, b in zip(*map(astuple, pair), strict=True)))
        for pair in zip(*counts, strict=True)
    )
    return plain, recomputed


def _count_both(
    config: Any, lora: Any, dtype: torch.dtype, compute: torch.dtype | None, upcasts: bool
) -> tuple[PassCount, PassCount]:
    model = build_on_meta(config, lora, dtype)
    _behave_like_cuda(model, compute)
    plain = _count_pass(model, upcasts=upcasts)
    with warnings.catch_warnings():
        # renamed in transformers 5.23, and those before it do not know the new name
        warnings.simplefilter("ignore", FutureWarning)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    return plain, _count_pass(model, upcasts=upcasts)


def _count_pass(model: Any, *, upcasts: bool) -> PassCount:
    ids = torch.zeros(1, N_TOKENS, dtype=torch.long, device="meta")
    known = (*model.parameters(), *model.buffers())
    saved, live = SavedBytes(*known), LiveBytes(*known)
    body = model.get_base_model().get_decoder()
    with live, nullcontext() if upcasts else disable_input_dtype_casting(model):
        with saved:
            # a mask is given only so that transformers does not derive one from position_ids
            out = body(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        sizes = saved.sizes
        saved.release()
        out.backward(torch.empty_like(out))
    model.zero_grad()
    of_tokens = sum(size for size in sizes if size % N_TOKENS == 0)
    fixed = sum(sizes) - of_tokens
    return PassCount(of_tokens / N_TOKENS, fixed, (live.peak - fixed) / N_TOKENS)


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# --- meters, on any device, the meta device included ---------------------------------------------

BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this. Source: c10/cuda/CUDACachingAllocator."""


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, those of `known` tensors left out.

    A storage counts once for all its views.
    """

    def __init__(self, *known: Tensor) -> None:
        self._own = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        # the storage itself is held: its address must not be given to another while counting
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._own:
            self._storages[storage._cdata] = storage
        return tensor

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def sizes(self) -> list[int]:
        """Bytes of every storage kept."""
        return [storage.nbytes() for storage in self._storages.values()]

    def release(self) -> None:
        """Drops the storages, so that a backward pass frees them as it does in a real run."""
        self._storages.clear()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's is untyped
    """Bytes alive at once of what is allocated, in whole blocks, `known` tensors left out."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak: int = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, torch.Tensor):
                self._count(part.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        n_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, n_bytes)

    def _free(self, n_bytes: int) -> None:
        self.now -= n_bytes
