"""The engine: token ids in, tokens out; it knows no text."""
