"""Tasks of the project's own, for lm-eval, that need no network: YAML files, and rules that make the data."""
