"""One table of settings, and the places their values come from. Knows no model and no terminal."""
