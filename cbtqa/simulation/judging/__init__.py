"""Judges of sessions: what is asked, by whom, and what comes back."""
