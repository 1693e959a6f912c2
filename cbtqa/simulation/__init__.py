"""Multi-turn English therapy sessions between models: made, exported, checked, judged, analysed.

Simulated throughout: no patient is real, and nothing here is fit to treat one.
"""
