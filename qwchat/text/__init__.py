"""Text around the model: tokens, templates, stop strings, defaults.  Knows no model."""
