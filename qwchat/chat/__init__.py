"""Talking with a person: text in, events out, and the terminal they are shown on."""
