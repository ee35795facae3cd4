"""Builds model bundles from published weights; needs the `export` extra. Never imported at run time."""
