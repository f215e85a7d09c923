"""Writes the pages of `docs/reference` from the program's own tables: `python -m docs.generator`."""
