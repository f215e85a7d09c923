"""Where a person types. prompt-toolkit is imported here and nowhere else, and only once a line editor is wanted."""
