"""What a person can turn: one table of knobs, and the places their values come from. Knows no model and no terminal."""
