"""One file per verb. The only place that prints: results to stdout, talk to stderr."""
