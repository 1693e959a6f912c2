"""The embedded teacher: facts of a question, grammar of an answer, no model."""
