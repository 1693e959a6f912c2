"""The training run: preparation, the trainer, its record."""
