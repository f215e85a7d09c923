"""Markdown as rows of a terminal, from a text that still grows. Does not know the chat."""
