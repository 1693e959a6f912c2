"""The backbone as training wants it: tokenizer with its chat format, weights, adapter.

Code from the Hub is never run: a checkpoint whose layout needs it is rejected.
"""

from __future__ import annotations

import re
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cbtqa.errors import ConfigError
from cbtqa.files import read_text
from cbtqa.tuning.backbones import Backbone, cannot_get, completed, find_backbone, template_text
from cbtqa.tuning.data.chat_format import ChatFormat, set_thinking
from cbtqa.tuning.libraries import (
    FAULTS,
    first_line,
    is_out_of_memory,
    require,
    shipped,
    shipped_yaml,
)
from cbtqa.tuning.settings import LoraSettings, OnStage, Place, Precision, Thinking
from cbtqa.tuning.weights.cache import converted, find_copy, from_modelscope

ComputeType = Literal["bf16", "fp16", "fp32"]
HEADS = ("lm_head", "embed_tokens", "wte", "embed_out")
ROUTERS = ("gate", "router", "shared_expert_gate", "wg")
"""Last names of layers that choose experts: trained on few rows they would send all to few."""
EXPERTS = re.compile(r"\.experts?\.")
TOWERS = re.compile(r"(^|\.)(visual|vision|image|audio|multi_modal|multimodal)[a-z_]*\.")
"""Parts that read pictures and sounds: no text passes them."""
ALL_EXPERTS = ("experts",)
"""In place of their names, until the model is known."""


def choose_backbone(
    name: str | None,
    revision: str | None = None,
    on_stage: OnStage = lambda words: None,
    *,
    place: Place = "hub",
    is_dry: bool = False,
) -> Backbone:
    """The backbone of a name, as transformers reads it; raises ConfigError without a name.

    One that was published with code of its own is downloaded and converted, once.

    Args:
        place: where a download comes from.
        is_dry: download and convert nothing: a converted copy that is there is taken.
    """
    if not name:
        hint = "--backbone NAME, a folder or a Hub id; names: cbtqa backbones"
        raise ConfigError("no backbone named", hint=hint)
    backbone = find_backbone(name)
    if revision:
        backbone = backbone.model_copy(update={"revision": revision})
    if place == "modelscope" and not is_dry:
        backbone = from_modelscope(backbone, on_stage)
    backbone = completed(backbone)
    if is_dry and backbone.needs_conversion:
        copy = find_copy(backbone)
        return find_backbone(copy) if copy else backbone
    return converted(backbone, on_stage)


def choose_precision(wanted: Precision) -> ComputeType:
    """The type of the matrix products, by device; raises ConfigError where it has none such."""
    cuda = require("torch").cuda
    has_bf16 = cuda.is_available() and cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp16" if cuda.is_available() else "fp32"
    if wanted == "fp16" and not cuda.is_available():
        raise ConfigError("--precision fp16 needs a CUDA card", hint="use --precision fp32 or bf16")
    if wanted == "bf16" and cuda.is_available() and not has_bf16:
        raise ConfigError("--precision: this card has no bf16", hint="use --precision fp16")
    return wanted


def load_chat(
    backbone: Backbone, chat_format: str | None = None, thinking: Thinking = "off"
) -> ChatFormat:
    """The tokenizer with a chat format, by name or file, or the backbone's own; raises ConfigError.

    The template is set on the tokenizer, so that it is saved with it, its thinking switch included.
    """
    auto = require("transformers").AutoTokenizer
    try:
        tokenizer = auto.from_pretrained(
            backbone.location, revision=backbone.revision or "main", trust_remote_code=False
        )
    except FAULTS as error:
        raise _not_loaded(backbone, error) from None
    template = template_text(backbone) if chat_format is None else find_template(chat_format)
    if template is not None:
        tokenizer.chat_template = template
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = set_thinking(tokenizer.chat_template, thinking)
    if backbone.pad_token and backbone.pad_token in tokenizer.get_vocab():
        tokenizer.pad_token = backbone.pad_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatFormat(tokenizer, end_of_turn=backbone.end_of_turn if chat_format is None else None)


def find_template(name: str) -> str:
    """The text of a chat template, by name or as a file; raises ConfigError for any other."""
    if name.endswith(".jinja") and Path(name).is_file():
        return read_text(Path(name))
    bare, known = name.removesuffix(".jinja"), shipped("templates", ".jinja")
    if bare not in known:
        hint = f"shipped: {', '.join(known)}; or the path of a .jinja file"
        raise ConfigError(f"--chat-format: no chat format '{name}'", hint=hint)
    return shipped_yaml(f"templates/{bare}.jinja")


_ONE_AT_A_TIME = threading.Lock()
"""transformers switches the tying of weights off for its whole module while it loads a model: of
two loads at once the second one would leave it off, and give later models a random head."""


def load_base(
    backbone: Backbone, precision: ComputeType, *, in_4_bits: bool = False, place: Any = None
) -> Any:
    """The base model, frozen, in the precision of the matrix products.

    Args:
        in_4_bits: NF4 with double quantisation, by bitsandbytes.
        place: device to load to; None for the CPU.

    Raises:
        ConfigError: missing, gated, damaged, or a type that needs remote code.
    """
    torch, transformers = require("torch"), require("transformers")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    more: dict[str, Any] = {}
    if in_4_bits:
        require("bitsandbytes", extra="qlora")
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if place is not None:
        more["device_map"] = {"": place}
    words = {"revision": backbone.revision or "main", "dtype": dtype, "trust_remote_code": False}
    try:
        with _ONE_AT_A_TIME:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                backbone.location, **words, **more
            )
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        raise _not_loaded(backbone, error) from None
    # what a model's own generation_config.json sets (penalties, temperatures) is set by flags here,
    # and recorded: nothing is inherited
    model.generation_config = transformers.GenerationConfig()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # on a CPU bitsandbytes would repack weights at the first evaluation, for good, and
            # what it packs has no gradient
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def _not_loaded(backbone: Backbone, error: Exception) -> ConfigError:
    words = str(error)
    if "trust_remote_code" in words or "does not recognize this architecture" in words:
        return ConfigError(
            f"{backbone.display_name} needs code from the Hub, which is never run here",
            hint="cbtqa backbones lists models that work without",
        )
    if isinstance(error, OSError):
        return cannot_get(backbone.display_name, error)
    return not_made(backbone.display_name, error)


def not_made(name: str, error: Exception) -> ConfigError:
    """The error for a model whose class cannot be made of its configuration, or not here."""
    line = first_line(error)
    if "Unrecognized configuration class" in line:
        return ConfigError(f"{name} cannot be tuned: transformers has no causal class for its type")
    if isinstance(error, ImportError):
        library = re.search(r"pip install ([\w.\[\]-]+)", str(error))
        hint = f"pip install {library[1]}" if library else None
        words = f"{name} needs a library that is not installed: {line.partition('. ')[0]}"
        return ConfigError(words, hint=hint)
    return ConfigError(f"{name} cannot be loaded: {line[:240] or type(error).__name__}")


def lora_config(settings: LoraSettings, backbone: Backbone) -> Any:
    """peft's configuration, to be completed by `complete_targets`.

    Raises:
        ConfigError: an adapter on output head or embedding, or on experts in a way peft has not.
    """
    targets = settings.target_module or backbone.target_modules
    experts = settings.targets == "experts"
    if experts and (settings.dropout or settings.dora or settings.method == "qlora"):
        raise ConfigError(
            "--targets experts goes with --dropout 0 and without --dora or --method qlora: peft "
            "adapts experts only so",
            hint="experts hold most weights and learn little from few rows: try the default first",
        )
    refused = [name for name in targets if name.rpartition(".")[2] in HEADS or name == "all-linear"]
    if refused:
        raise ConfigError(
            f"--target-module {', '.join(refused)}: the output head and the embedding stay frozen: "
            "the loss runs on a frozen head, and some models tie the two",
            hint="name projections: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        )
    return require("peft").LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets) or None,
        target_parameters=list(ALL_EXPERTS) if experts else None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        task_type="CAUSAL_LM",
    )


def complete_targets(model: Any, config: Any, name: str) -> Any:
    """The configuration with the names of this model's layers; gives it back.

    Raises:
        ConfigError: a layer that the model has not, no linear layer at all, or no experts.
    """
    kinds = (require("torch").nn.Linear, require("transformers.pytorch_utils").Conv1D)
    head = model.get_output_embeddings()
    linear = [
        n
        for n, one in model.named_modules()
        # a grouped one multiplies blocks of its input, which no adapter does
        if isinstance(one, kinds) and one is not head and "Grouped" not in type(one).__name__
    ]
    whole = {n for n, one in model.named_modules() if _reads_weights(one)}
    of_text = [
        n
        for n in linear
        if not TOWERS.search(n) and (n.rpartition(".")[0] not in whole or n.endswith(".in_proj"))
    ]
    if tuple(config.target_parameters or ()) == ALL_EXPERTS:
        in_blocks = (n for n, p in model.named_parameters() if p.dim() == 3 and EXPERTS.search(n))
        found = sorted({".".join(n.split(".")[-2:]) for n in in_blocks})
        if not found and not any(map(EXPERTS.search, of_text)):
            raise ConfigError(f"--targets experts: {name} has no experts")
        config.target_parameters = found or None
    else:
        of_text = [n for n in of_text if not EXPERTS.search(n)]
    own = sorted({_short(n) for n in of_text} - {*HEADS, *ROUTERS})
    wanted = sorted(config.target_modules or own)
    missing = sorted(set(wanted) - {_short(n) for n in linear})
    if missing or not wanted:
        raise ConfigError(
            f"{name} has no linear layer {', '.join(missing)}".rstrip(),
            hint=f"--target-module, one of: {', '.join(own)}" if own else None,
        )
    config.target_modules = wanted
    kept = set(of_text)
    # parts that hold layers may bear such a name as well
    outside = sorted(n for n, _ in model.named_modules() if n not in kept and _short(n) in wanted)
    if outside:
        config.exclude_modules = f"({'|'.join(map(re.escape, outside))})"
    return config


def _reads_weights(module: Any) -> bool:
    """True for a state-space layer, whose kernels take the weights of all projections but the first
    and so pass an adapter by."""
    return hasattr(module, "A_log") and hasattr(module, "D")


def _short(name: str) -> str:
    """The last part of a layer's name, with the one before it where it is a mere number."""
    *before, last = name.split(".")
    return ".".join([*before[-1:], last]) if last.isdigit() else last


def with_adapter(model: Any, config: Any, name: str) -> Any:
    """peft's model; raises ConfigError for layers that it refuses to adapt."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return require("peft").get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{name}: peft adapts no such layers: {first_line(error)[:240]}",
                hint="--target-module names others",
            ) from None


def add_adapter(model: Any, config: Any, backbone: Backbone) -> Any:
    """The model with a fresh float32 adapter, alone trainable; raises ConfigError for no layer."""
    complete_targets(model, config, backbone.display_name)
    adapted = with_adapter(model, config, backbone.display_name)
    # peft writes the loaded path here, which names this machine's folders
    config.base_model_name_or_path, config.revision = backbone.display_name, backbone.revision
    # without it peft asks the Hub for the base's vocabulary at every save
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted
