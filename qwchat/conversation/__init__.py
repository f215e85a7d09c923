"""What was said, and in which alternatives: plain data that knows no model and no terminal."""
