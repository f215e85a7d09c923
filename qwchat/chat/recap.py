"""The last exchange of a conversation, shown again where the conversation goes on."""

from __future__ import annotations

from qwchat.conversation.title import without_files
from qwchat.conversation.tree import Tree

UNANSWERED = "it was not answered: /continue answers it"


def conversation_length(tree: Tree) -> str:
    """Return how long a conversation is that goes on, for the end of a sentence."""
    messages = len(tree.path())
    if not messages and tree.nodes:
        return "empty (/redo brings its turns back)"
    return "1 message" if messages == 1 else f"{messages:,} messages"


def question_line(question: str) -> str:
    """Return `question` as it was typed, without attached files, on one line that counts the others."""
    first, *more = without_files(question).strip().splitlines() or [""]
    return first + (f" … (+{len(more)} line{'' if len(more) == 1 else 's'})" if more else "")


def last_exchange(tree: Tree) -> tuple[str, str | None]:
    """Return the line of the last question, behind a prompt sign, and its reply; None where there is no reply yet."""
    path = tree.path()
    question = next((node.content for node in reversed(path) if node.role == "user"), "")
    replied = bool(path) and path[-1].role == "assistant"
    return f"> {question_line(question)}", path[-1].content if replied else None
