"""One experiment from end to end: recipes, the pipeline over the verbs, and its report."""
