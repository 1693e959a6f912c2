"""Answers from an adapter, a model or an endpoint; the chat."""
