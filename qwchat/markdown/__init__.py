"""Markdown as rows of a terminal, from a text that still grows.  Knows no chat."""
