"""Every listed backbone at a size that a test can build: its own class, a few thousand weights."""

from __future__ import annotations

from typing import Any

from cbtqa.tuning.backbones import Backbone, to_config
from cbtqa.tuning.weights.tiny import shrunk


def tiny_random_model(backbone: Backbone, seed: int = 0) -> Any:
    """A random model of the backbone's class, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(to_config(shrunk(backbone))).eval()
