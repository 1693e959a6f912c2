"""Chinese text as numbers: segmentation, token sequences, n-gram counts, alignment."""
