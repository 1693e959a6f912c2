"""A language model rates answers on the rubric that people rate them on, and is checked by them."""
