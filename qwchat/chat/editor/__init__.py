"""The prompt. Only this package imports prompt-toolkit, and only when a line editor is used."""
