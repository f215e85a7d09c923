"""Markdown rendered to terminal rows while the text still grows. This package does not know the chat."""
