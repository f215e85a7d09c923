"""Files mentioned in a typed message: `@src/app.py:10-80`, `@src/**/*.py`, `@"two words.txt"`.

A mention starts at the beginning of a word and extends to the next space. Quotes, or a backslash before the space,
allow spaces in a path. Trailing punctuation of the sentence is not part of it. An `@` that names no file stays text, as
do e-mail addresses and everything in code (between backticks, or in a fence). `@@` stands for a plain `@` where a
mention would begin. The message is sent without the `@`, so an edited message does not attach the same files twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwchat.chat.attachments import Attachment, LoadedFiles, compose_message, load_matches
from qwchat.chat.file_names import FileMatches, find_files, safe_name, walk_files
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.errors import UsageError
from qwchat.text_files import expand_path

_BEFORE = r"""(?<![^\s(\[{<"'“‘,;（【《「『，。、；：？！])"""
_MENTION = re.compile(
    _BEFORE
    + r"""@(?P<escape>@*)(?!@)
    (?:
        (?P<quote>["'])(?P<quoted>(?:(?!(?P=quote))[^\n])+)(?P=quote)(?P<range>:[\d-]+)?
        | (?P<bare>(?:\\.|(?![,;，；、]@)[^\s\\])+)
    )""",
    re.VERBOSE,
)
_CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^`\n]*\n.*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_SENTENCE = ".,;:!?…)]}>\"'”’，。、；：？！）】》」』"  # Punctuation that may follow a name without being part of it.
_PATHLIKE = re.compile(r"\w[./]\w|[*?[/]")
_OPEN_MENTION = re.compile(_BEFORE + r"""@(?:"(?P<quoted>[^"\n]*)|(?P<bare>(?:\\.|[^\s\\"'@])*))\Z""")
_SPECIAL = r"""[\s\\"'@]"""  # Characters that need quotes or a backslash in a name.
_MAX_SUGGESTIONS = 100
_UNKNOWN_SHOWN = 5  # Unknown names that get a notice each; the rest share one.


@dataclass(frozen=True)
class ComposedMessage:
    """A typed message with its mentions resolved.

    Attributes:
        text: the message without the `@` of mentions.
        attachments: the files that it mentions.
        notices: what to tell the user about them.
    """

    text: str
    attachments: tuple[Attachment, ...] = ()
    notices: tuple[str, ...] = ()

    def text_with_files(self, before: Iterable[Attachment] = ()) -> str:
        """Return the message to send: the files, those of `before` first, then the text."""
        return compose_message([*before, *self.attachments], self.text)


def unquote(name: str) -> str:
    """Return the file name that the argument of a command stands for, without quotes, backslashes and `@`.

    If a file has exactly this name, the argument is returned as it is.
    """
    match = _MENTION.fullmatch(name if name.startswith("@") else f"@{name}")
    if match is None or match["escape"] or find_files(name) is not None:
        return name
    if match["quoted"]:
        return match["quoted"] + (match["range"] or "")
    return re.sub(rf"\\({_SPECIAL})", r"\1", match["bare"])


def compose(typed: str) -> ComposedMessage:
    """Read the files that `typed` mentions.

    Raises:
        UsageError: a file exists but cannot be attached.
    """
    pieces: list[str] = []
    found: dict[str, LoadedFiles] = {}
    unknown: dict[str, None] = {}
    end = 0
    for match in _outside_code(typed):
        if match["escape"]:
            if _is_mention(match):
                pieces += [typed[end : match.start()], typed[match.start() + 1 : match.end()]]
                end = match.end()
            continue
        name, rest, matches = _resolve(match)
        if matches is None:
            if _PATHLIKE.search(name):
                unknown[safe_name(name)] = None
            continue
        found[name] = found.get(name) or load_matches(matches)
        pieces += [typed[end : match.start()], name + rest]
        end = match.end()
    text = "".join((*pieces, typed[end:]))
    attachments = dict.fromkeys(attachment for each in found.values() for attachment in each.attachments)
    notices = [f"@{name} matches no file and is sent as text" for name in list(unknown)[:_UNKNOWN_SHOWN]]
    if len(unknown) > _UNKNOWN_SHOWN:
        notices.append(f"… and {len(unknown) - _UNKNOWN_SHOWN:,} more")
    notices += [notice for each in found.values() for notice in each.notices]
    return ComposedMessage(text, tuple(attachments), tuple(notices))


def escape_mentions(text: str) -> str:
    """Return `text` escaped so that `compose` finds no mention in it and restores it."""
    pieces: list[str] = []
    end = 0
    for match in _outside_code(text):
        if _is_mention(match):
            pieces += [text[end : match.start()], "@"]
            end = match.start()
    return "".join([*pieces, text[end:]])


def _is_mention(match: re.Match[str]) -> bool:
    """Return whether a match refers to a file, even one that cannot be attached."""
    try:
        return _resolve(match)[2] is not None
    except UsageError:
        return True


def _outside_code(text: str) -> Iterator[re.Match[str]]:
    """Yield the matches that are not in code."""
    code = [match.span() for match in _CODE.finditer(text)]
    for match in _MENTION.finditer(text):
        before = bisect_right(code, match.start(), key=lambda span: span[0])
        if not before or code[before - 1][1] <= match.start():
            yield match


def _resolve(match: re.Match[str]) -> tuple[str, str, FileMatches | None]:
    """Return the name that a match refers to, the punctuation after it, and the files it matches."""
    if match["quoted"]:
        name = match["quoted"] + (match["range"] or "")
        return name, "", find_files(name)
    bare = re.sub(r"\\(.)", r"\1", match["bare"])
    name = bare
    while name:
        matches = find_files(name)
        if matches is not None:
            return name, bare[len(name) :], matches
        if name[-1] not in _SENTENCE:
            break
        name = name[:-1]
    return bare.rstrip(_SENTENCE) or bare, "", None


def suggestions(text: str) -> Iterator[Suggestion]:
    """Yield completions for the mention at the end of `text`: entries of that folder, then files further down."""
    match = _OPEN_MENTION.search(text)
    if match is None:
        return
    typed = match["quoted"] if match["quoted"] is not None else re.sub(r"\\(.)", r"\1", match["bare"])
    folder, slash, start = typed.rpartition("/")
    here = _folder_entries(folder + slash, hidden=start.startswith("."))
    names = [suggestion.text for suggestion in match_suggestions(start, here)]
    if len(start) >= 2:
        deeper = list(walk_files(folder + slash))
        containing = [name for name in deeper if start.casefold() in name.casefold()]
        # Matching letters in order, with gaps, finds too many long paths, so it is the last resort.
        candidates = containing if containing or names else deeper
        names += [suggestion.text for suggestion in match_suggestions(start, ((name, "") for name in candidates))]
    for name in names[:_MAX_SUGGESTIONS]:
        yield Suggestion(_quote(folder + slash + name), len(match[0]))


def _folder_entries(folder: str, *, hidden: bool) -> Iterator[tuple[str, str]]:
    try:
        found = sorted(expand_path(folder or ".").iterdir())
    except OSError:
        return
    for path in found:
        if path.name.isprintable() and (hidden or not path.name.startswith(".")):
            yield path.name + ("/" if path.is_dir() else ""), ""


def _quote(name: str) -> str:
    """Return the mention of a name, quoted if necessary. After a folder the quote stays open for further typing."""
    if '"' in name:
        return "@" + re.sub(_SPECIAL, r"\\\g<0>", name)
    if not re.search(_SPECIAL, name):
        return f"@{name}"
    return f'@"{name}' if name.endswith("/") else f'@"{name}"'
