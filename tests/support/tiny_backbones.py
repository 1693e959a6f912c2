"""Every listed backbone at a size that a test can build: its own class, a few thousand weights."""

from __future__ import annotations

from typing import Any

from cbtqa.tuning.backbones import Backbone, Shape, to_config

VOCAB = 576
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}


def shrunk(backbone: Backbone) -> Backbone:
    """The backbone with two narrow layers, its ratios of heads and its special keys kept."""
    shape = backbone.shape
    assert shape is not None
    heads = 4
    kv_heads = heads if shape.kv_heads == shape.heads else 2
    more = dict(shape.more)
    if "kv_lora_rank" in more:
        more |= {**LATENT, "v_head_dim": 16, "dim_model_base": 32}
    if "num_experts" in more:
        more |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    if "linear_num_key_heads" in more:
        more |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        more |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    small = Shape(
        hidden=64,
        layers=4 if "linear_num_key_heads" in more else 2,  # one kind of layer in four is another
        heads=heads,
        kv_heads=kv_heads,
        intermediate=96,
        vocab=VOCAB,
        head_dim=16 if shape.head_dim else None,
        tied=shape.tied,
        norm_eps=shape.norm_eps,
        rope=shape.rope,
        more=more,
    )
    return backbone.model_copy(update={"shape": small, "context": 512})


def tiny_random_model(backbone: Backbone, seed: int = 0) -> Any:
    """A random model of the backbone's class, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(to_config(shrunk(backbone))).eval()
