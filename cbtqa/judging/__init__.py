"""An LLM judge for answers: asking by a rubric, agreement with itself and with people."""
