"""Metrics that ask a neural model: BERTScore and BLEURT, with weights from a folder or the Hub.

Nothing here imports torch until a score is asked for; the extra is `neural`.
"""
