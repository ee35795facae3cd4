"""Summaries of tickets."""
