"""Ratings by people: rubrics, blinded studies, sheets, the web form, collection, results.

A study is a folder (`study`). Two front ends, an xlsx per rater (`sheets`) and a web form (`web`),
write the same append-only events (`store`), so identical ratings give identical results
(`results`). The names of the rated systems are never in the folder (`study.StudyKey`).
"""
