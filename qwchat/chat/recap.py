"""The recap of a conversation that continues: its length and its last exchange."""

from __future__ import annotations

from qwchat.conversation.reply_parts import is_unfinished_thought, reply_parts
from qwchat.conversation.title import without_files
from qwchat.conversation.tree import Tree

UNANSWERED = "no reply yet: /continue generates it"


def conversation_length(tree: Tree) -> str:
    """Return the number of messages in a conversation, as text."""
    messages = len(tree.path())
    if not messages and tree.nodes:
        return "empty (/redo restores its turns)"
    return "1 message" if messages == 1 else f"{messages:,} messages"


def question_line(question: str) -> str:
    """Return the first line of a message as it was typed, with a count of the others, without attached files."""
    first, *more = without_files(question).strip().splitlines() or [""]
    return first + (f" … (+{len(more)} line{'' if len(more) == 1 else 's'})" if more else "")


def last_exchange(tree: Tree) -> tuple[str, str | None]:
    """Return the last message of the user as a prompt line, and its answer; None if there is no answer yet."""
    path = tree.path()
    question = next((node.content for node in reversed(path) if node.role == "user"), "")
    replied = bool(path) and path[-1].role == "assistant" and not is_unfinished_thought(path[-1])
    return f"> {question_line(question)}", reply_parts(path[-1]).answer if replied else None


def last_thought(tree: Tree) -> str:
    """Return the thought of the last reply, or "" without one."""
    reply = next((node for node in reversed(tree.path()) if node.role == "assistant"), None)
    return "" if reply is None else reply_parts(reply).thought
