"""Scores of sessions: outcomes, mixed models, agreement, alarms, pages."""
