"""Export of a conversation as Markdown, as a self-contained web page, or as JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwchat.characters import escape_json, show_code_points
from qwchat.conversation.reply_parts import has_thought, reply_parts
from qwchat.conversation.title import clean_line, title_from_question
from qwchat.conversation.tree import Node, Tree
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

ExportFormat = Literal["md", "html", "json"]
SUMMARY_HEADING = "Sent in place of the turns above"
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("md", "html", "json")
_EXTRA_CELLS = 10_000
_SUFFIXES: dict[str, ExportFormat] = {".json": "json", ".html": "html", ".htm": "html"}

_STYLE = """\
:root { color-scheme: light dark; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
section { margin: 1.5rem 0; }
h1 { font-size: 1.4rem; }
h2 { font-size: 0.9rem; margin: 0 0 0.25rem; opacity: 0.65; }
.said { white-space: pre-wrap; overflow-wrap: break-word; }
.thought { margin: 0 0 1rem; padding-left: 0.75rem; border-left: 3px solid rgb(128 128 128 / 0.5); opacity: 0.75; }
.user .said, .system .said { padding: 0.5rem 0.75rem; border-radius: 0.5rem; background: rgb(128 128 128 / 0.15); }
pre { overflow-x: auto; padding: 0.75rem; border-radius: 0.5rem; background: rgb(128 128 128 / 0.15); }
table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.6rem; border: 1px solid rgb(128 128 128 / 0.5); }
footer, .end { font-size: 0.85rem; opacity: 0.65; }
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="und">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{sections}
<footer>{footer}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Transcript:
    """Conversation to export: the turns up to the tree's head, and facts about the session.

    Attributes:
        tree: The conversation.
        model: Name of the current model, for replies without the name of theirs.
        id: Session id; "" if the session is not saved.
        created: ISO 8601; "" if unknown.
        settings: Settings of the next replies, by name.
    """

    tree: Tree
    model: str
    id: str = ""
    created: str = ""
    settings: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        """Title of the conversation, chosen or derived; never empty, always one line."""
        chosen = clean_line(self.tree.title or "")
        first = next((node.content for node in self.tree.path()), "")
        return chosen or title_from_question(first) or f"Conversation with {clean_line(self.model)}"


def export_transcript(transcript: Transcript, export_format: ExportFormat) -> str:
    """Return the conversation in the given format.

    Raises:
        UsageError: If the conversation is empty.
    """
    if not transcript.tree.path():
        raise UsageError("the conversation is empty, so there is nothing to save")
    return {"md": as_markdown, "html": as_html, "json": as_json}[export_format](transcript)


def format_of(path: Path) -> ExportFormat:
    """Return the export format for a file name: Markdown unless it ends in .json, .html or .htm."""
    return _SUFFIXES.get(path.suffix.lower(), "md")


def file_name(transcript: Transcript, export_format: ExportFormat) -> str:
    """Return a file name made from the title: letters, digits and dashes."""
    words = re.findall(r"[^\W_]+", transcript.title.casefold())
    name = "-".join(words)[:50].strip("-") or "conversation"
    return f"{name}.{export_format}"


def as_markdown(transcript: Transcript) -> str:
    """Return the conversation as Markdown with a heading for each turn.

    Turns are verbatim, except that an unclosed code block is closed. Control characters and invisible characters are
    named, as in [U+001B], because the file may be shown on a terminal.
    """
    parts = [f"# {transcript.title}"]
    if transcript.tree.system is not None:
        parts.append(f"## System\n\n{_close_fence(transcript.tree.system)}")
    dropped, summaries = _dropped_turns(transcript.tree)
    for node in transcript.tree.path():
        thought, answer = reply_parts(node)
        quoted = f"{_quote(thought)}\n\n" if thought else ""
        parts.append(f"## {_heading(node, transcript, dropped)}\n\n{quoted}{_close_fence(answer)}")
        if node.id in summaries:
            parts.append(f"## {SUMMARY_HEADING}\n\n{_close_fence(summaries[node.id])}")
    return show_code_points("\n\n".join(parts).replace("\r\n", "\n") + "\n")


def as_json(transcript: Transcript) -> str:
    """Return the conversation as one JSON object: id, title, created, model, messages, settings.

    Each message has role and content, a reply with a thought also reasoning, and if known finish_reason, seed,
    settings, stats, model (fingerprint), model_name, created and note. `sent` is false for turns that are no longer
    sent to the model; the last of these has the `summary` that is sent instead, if any.
    """
    system = transcript.tree.system
    dropped, summaries = _dropped_turns(transcript.tree)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    document: dict[str, Any] = {
        "id": transcript.id or None,
        "title": transcript.title,
        "created": transcript.created or None,
        "model": transcript.model,
        "messages": messages + [_message(node, dropped, summaries) for node in transcript.tree.path()],
    }
    if transcript.settings is not None:
        document["settings"] = transcript.settings
    return escape_json(json.dumps(document, ensure_ascii=False, indent=2)) + "\n"


def as_html(transcript: Transcript) -> str:
    """Return the conversation as one page without scripts, pictures, control characters or external resources.

    User messages are shown as typed. Replies are rendered as Markdown, in which HTML is text.
    """
    sections: list[str] = []
    if transcript.tree.system is not None:
        sections.append(_section("system", "System", _plain_html(transcript.tree.system)))
    dropped, summaries = _dropped_turns(transcript.tree)
    for node in transcript.tree.path():
        reply = node.role == "assistant"
        thought, answer = reply_parts(node)
        body = _rendered_html(answer) if reply else _plain_html(answer)
        if thought:
            body = f'<blockquote class="thought"><em>Thought</em>\n{_plain_html(thought)}</blockquote>\n{body}'
        cut = node.finish_reason not in (None, "stop")
        ending = f'<p class="end">{html.escape(str(node.finish_reason))}</p>\n' if reply and cut else ""
        sections.append(_section(node.role, _heading(node, transcript, dropped), body + ending))
        if node.id in summaries:
            sections.append(_section("system", SUMMARY_HEADING, _plain_html(summaries[node.id])))
    details = [transcript.model, transcript.created, transcript.id and f"session {transcript.id}"]
    footer = html.escape(" · ".join(detail for detail in details if detail))
    page = _PAGE.format(title=html.escape(transcript.title), style=_STYLE, sections="\n".join(sections), footer=footer)
    # Last, because Markdown decodes entities such as &#27;.
    return show_code_points(page.replace("\r\n", "\n"))


def _dropped_turns(tree: Tree) -> tuple[frozenset[int], dict[int, str]]:
    """Return the turns that are no longer sent, and the summaries that are, by the last turn each replaces."""
    drops = tree.active_drops(tree.head)
    return tree.dropped(), {max(drop.ids): drop.summary for drop in drops if drop.summary is not None}


def _heading(node: Node, transcript: Transcript, dropped: frozenset[int]) -> str:
    heading = "You" if node.role == "user" else clean_line(node.model_name or transcript.model) or "Assistant"
    return f"{heading} (not sent any more)" if node.id in dropped else heading


def _message(node: Node, dropped: frozenset[int], summaries: dict[int, str]) -> dict[str, Any]:
    fields: Sequence[str] = ("finish_reason", "seed", "settings", "stats", "model", "model_name", "created", "note")
    known = {name: value for name in fields if (value := getattr(node, name)) not in (None, "")}
    if node.id in dropped:
        known["sent"] = False
    if node.id in summaries:
        known["summary"] = summaries[node.id]
    thought, answer = reply_parts(node)
    return {"role": node.role, "content": answer} | ({"reasoning": thought} if has_thought(node) else {}) | known


def _quote(thought: str) -> str:
    """Return a thought as a Markdown block quote with a heading."""
    lines = ["*Thought*", "", *_close_fence(thought).replace("\r\n", "\n").split("\n")]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _close_fence(text: str) -> str:
    """Return `text` with its last code block closed, which would otherwise swallow the following turns."""
    if "```" not in text and "~~~" not in text:
        return text
    last = _blocks().parse(f"{text}\n\n# After")[-1]
    if last.type != "fence":
        return text
    return text + ("" if text.endswith("\n") else "\n") + last.markup


def _section(role: str, heading: str, body: str) -> str:
    return f'<section class="{role}">\n<h2>{html.escape(heading)}</h2>\n{body}</section>'


def _plain_html(text: str) -> str:
    return f'<div class="said">{html.escape(text)}</div>\n'


def _rendered_html(text: str) -> str:
    """Return `text` rendered from Markdown.

    Text whose tables would have far more cells than it has characters is returned as typed.
    """
    columns = max(line.count("|") for line in text.split("\n"))
    if columns * text.count("\n") > 4 * len(text) + _EXTRA_CELLS:
        return _plain_html(text)
    page: str = _markdown().render(text)
    return page


@cache
def _blocks() -> MarkdownIt:
    """Return a parser of CommonMark blocks only, without tables, which may have very many empty cells."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).disable("inline")


@cache
def _markdown() -> MarkdownIt:
    """Return a Markdown renderer with tables and strikethrough: newlines kept, HTML as text, pictures as links."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
