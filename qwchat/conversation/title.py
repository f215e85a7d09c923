"""Session titles made from the first question."""

from __future__ import annotations

import re
import unicodedata

MAX_TITLE = 60  # Characters of a title made from a question.
MAX_LINE = 200
# A file in a message: its name, a blank line, and a code block whose fence does not occur in the file.
_FILE = re.compile(r"File [^\n]+:(?:\n\n(`{3,})[\w+#]*\n.*?^\1(?:\n+|\Z)| empty(?:\n\n|\Z))", re.DOTALL | re.MULTILINE)
_SENTENCE_ENDS = ("?", "!", ".", ":", "？", "。", "！")


def clean_line(text: str) -> str:
    """Return `text` as one line of at most 200 characters, without control, invisible or bidirectional characters."""
    shown = "".join(" " if character.isspace() else character for character in text[: 8 * MAX_LINE])
    kept = "".join(
        character for character in shown if character == "\u200d" or unicodedata.category(character)[0] != "C"
    )
    return _shorten(" ".join(kept.split()), MAX_LINE)


def title_from_question(question: str) -> str:
    """Return a title for a conversation that begins with `question`, or "" if nothing in it can serve as one.

    The title is the first line, or the last line if that reads like a sentence and the first does not, as after piped
    text. Files before the question are left out unless there is nothing else. All visible characters are kept:
    `src/*.py`, `__init__` and `<x>` are words, and so is anything that looks like Markdown.
    """
    question = without_files(question)
    lines = [line.strip() for line in question.splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return clean_line(question)[:MAX_TITLE]
    best = lines[-1] if _is_sentence(lines[-1]) and not _is_sentence(lines[0]) else lines[0]
    return _shorten(clean_line(best), MAX_TITLE)


def without_files(question: str) -> str:
    """Return `question` without the files before it, or the name of the first file if there is nothing else."""
    start = 0
    while (block := _FILE.match(question, start)) is not None:
        start = block.end()
    return question[start:] if question[start:].strip() else question.partition("\n")[0].removesuffix(":")


def _is_sentence(line: str) -> bool:
    return line.endswith(_SENTENCE_ENDS) or (line[:1].isupper() and " " in line)


def _shorten(text: str, longest: int) -> str:
    """Return `text`, or its beginning, cut between words if that loses little."""
    if len(text) <= longest:
        return text
    start = text[: longest - 1]
    at_word = start.rpartition(" ")[0]
    return (at_word if len(at_word) > longest // 2 else start).rstrip(" ,;:.-") + "…"
