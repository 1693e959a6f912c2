"""Statistics over scores and ratings: resampling tests and intervals, agreement of raters.

Pure numpy; knows arrays, and nothing of metrics, files or records.
"""
