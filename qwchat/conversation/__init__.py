"""Conversations and their alternatives: plain data that does not know models or terminals."""
