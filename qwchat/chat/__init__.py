"""The chat: conversation logic, slash commands, the line editor and the terminal view."""
