"""Weights on disk: files, conversion, adapters, merging."""
