"""The table of settings and the sources of their values. Knows no model and no terminal."""
