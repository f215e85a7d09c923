"""The engine: token ids in, tokens out. It knows no text."""
