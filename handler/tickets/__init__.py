"""`tickets`: what was enriched, for people and for pipes."""
