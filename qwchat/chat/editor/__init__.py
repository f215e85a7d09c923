"""Where a person types. prompt-toolkit is imported here and nowhere else, and only once a line editor is wanted."""

from qwchat.chat.editor.history import history_file
from qwchat.chat.editor.modes import keys_unseen
from qwchat.chat.editor.opening import open_reader
from qwchat.chat.editor.plain import PlainReader
from qwchat.chat.editor.reader import EditingMode, Reader

__all__ = ["EditingMode", "PlainReader", "Reader", "history_file", "keys_unseen", "open_reader"]
