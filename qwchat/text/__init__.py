"""Text around the model: tokens, templates, stop strings, defaults. Does not know the model."""
