"""Tuning: backbones, weight conversion, LoRA training, merging, local inference."""
