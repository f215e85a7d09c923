"""Conversation as a tree: each question and each reply is a node, and nodes are never removed.

Undo moves the head towards the root, a retry adds a sibling, and the model is sent the path from the root to the head.
Each change is an event, a dict of JSON values, so that a file of events stores the conversation:

    {"node": {...}}                        a turn was added and is the head (fields of `Node`, without None)
    {"head": id | null}                    another turn is the head; null: before the first turn
    {"system": text | null}                the system prompt changed
    {"title": text}                        the title changed
    {"dropped": [ids], "summary": text}    these turns are no longer sent (see `Tree.drop`); no ids: all are sent
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from qwchat.conversation.event_checks import check_event, check_node_fields
from qwchat.errors import SessionError, UsageError
from qwchat.messages import Message

Event = dict[str, Any]
_HEAD: Final = -1  # Means the current head.


@dataclass(frozen=True)
class Node:
    """Turn of a conversation.

    Attributes:
        id: 1, 2, … in order of creation.
        parent: Id of the previous turn; None for the first.
        role: "user" or "assistant".
        content: Text of the turn.
        token_ids: Token ids that the model generated, for an unchanged reply.
        finish_reason: How the reply ended (see `qwchat.events.FinishReason`).
        seed: Seed of the reply. For a question: seed of the reply in progress, so that an unfinished reply can be
            repeated.
        settings: Settings of the reply, by name. For a question: of the reply in progress.
        stats: Counts and times of the reply (fields of `qwchat.events.Stats`).
        model: Fingerprint of the model that replied.
        model_name: Its name.
        created: ISO 8601, UTC.
        note: Remark such as "edited".
        replaces: Id of the sibling that this turn continues, which is then no longer an alternative.
    """

    id: int
    parent: int | None
    role: str
    content: str
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    seed: int | None = None
    settings: dict[str, Any] | None = None
    stats: dict[str, Any] | None = None
    model: str | None = None
    model_name: str | None = None
    created: str = ""
    note: str | None = None
    replaces: int | None = None

    def as_event(self) -> Event:
        """Return the event that adds this node."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.token_ids is not None:
            values["token_ids"] = list(self.token_ids)
        return {"node": {name: value for name, value in values.items() if value is not None or name == "parent"}}

    def as_message(self, *, with_ids: bool = True) -> Message:
        """Return the turn as a message for a model, with the token ids of a reply if `with_ids`."""
        message: Message = {"role": self.role, "content": self.content}
        if with_ids and self.token_ids is not None and self.role == "assistant":
            message["token_ids"] = self.token_ids
        return message


@dataclass(frozen=True)
class Drop:
    """Turns that are no longer sent, and the summary sent instead."""

    ids: frozenset[int]
    summary: str | None


class Tree:
    """Turns of one conversation.

    Args:
        listener: Called with the event of each change, after the change.

    Attributes:
        listener: See above.
        head: Id of the newest turn of the current path; None before the first.
        system: System prompt, or None.
        title: Title, or None.
    """

    def __init__(self, listener: Callable[[Event], None] | None = None) -> None:
        self.listener = listener
        self.head: int | None = None
        self.system: str | None = None
        self.title: str | None = None
        self._nodes: list[Node] = []
        self._children: dict[int | None, list[int]] = {None: []}
        self._visited_heads: dict[int, None] = {}  # Former heads, each at its latest visit, the latest last.
        self._replaced_ids: set[int] = set()
        self._drops: dict[int, Drop] = {}  # By number, in order of creation.
        self._dropped_by: dict[int, int] = {}  # Turn -> number of the drop that contains it.
        self._next_drop = 0

    @classmethod
    def replay(cls, events: Iterable[Mapping[str, Any]]) -> Tree:
        """Return the tree that results from `events`, which are untrusted.

        Raises:
            SessionError: If an event is invalid.
        """
        tree = cls()
        for number, event in enumerate(events, 1):
            try:
                tree.apply(event)
            except UsageError as error:
                raise SessionError(f"event {number}: {error}") from error
        return tree

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply an event without telling the listener.

        Raises:
            UsageError: If the event is invalid.
        """
        kind, value = check_event(event)
        if kind == "node":
            node = Node(**check_node_fields(value))
            if node.id != len(self._nodes) + 1:
                raise UsageError(f"the node's id is {node.id}, but the next id is {len(self._nodes) + 1}")
            self._insert(node)
        elif kind == "head":
            self._set_head(value)
        elif kind == "system":
            self.system = value
        elif kind == "title":
            self.title = value
        else:
            self._drop(value, event.get("summary"))

    def events(self) -> Iterator[Event]:
        """Yield the events that rebuild this tree."""
        if self.title is not None:
            yield {"title": self.title}
        if self.system is not None:
            yield {"system": self.system}
        for node in self._nodes:
            yield node.as_event()
        if self._nodes and self.head != self._nodes[-1].id:
            yield {"head": self.head}
        for drop in self._drops.values():
            yield _drop_event(sorted(drop.ids), drop.summary)

    @property
    def drops(self) -> list[Drop]:
        """Drops in effect; none of them overlap."""
        return list(self._drops.values())

    @property
    def nodes(self) -> Sequence[Node]:
        """All turns in order of creation."""
        return tuple(self._nodes)

    def node(self, node_id: int) -> Node:
        """Return the turn with this id.

        Raises:
            UsageError: If it does not exist.
        """
        if not 1 <= node_id <= len(self._nodes):
            raise UsageError(f"this conversation has no turn {node_id}")
        return self._nodes[node_id - 1]

    def path(self, node_id: int | None = _HEAD) -> list[Node]:
        """Return the turns from the first to `node_id` (default: the head)."""
        found = []
        at = self.head if node_id == _HEAD else node_id
        while at is not None:
            found.append(self.node(at))
            at = found[-1].parent
        return found[::-1]

    def children(self, node_id: int | None) -> list[Node]:
        """Return the turns that follow `node_id`, oldest first; for None, the first turns."""
        if node_id is not None:
            self.node(node_id)
        return [self._nodes[child - 1] for child in self._children[node_id] if child not in self._replaced_ids]

    def siblings(self, node_id: int) -> list[Node]:
        """Return the alternatives to `node_id`, including itself, oldest first."""
        parent = self.node(node_id).parent
        shown = {node_id, *(child.id for child in self.children(parent))}
        return [self._nodes[child - 1] for child in self._children[parent] if child in shown]

    def tip(self, node_id: int | None) -> int | None:
        """Return the last turn of the path most recently taken through `node_id` (None: through the beginning)."""
        last_children = self._last_children()
        while node_id in last_children:
            node_id = last_children[node_id]
        return node_id

    def add(
        self,
        role: str,
        content: str,
        *,
        parent: int | None = _HEAD,
        token_ids: Sequence[int] | None = None,
        finish_reason: str | None = None,
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
        model: str | None = None,
        model_name: str | None = None,
        note: str | None = None,
        replaces: int | None = None,
    ) -> Node:
        """Add a turn after `parent` (default: the head), make it the head and return it. For the fields, see `Node`.

        Raises:
            UsageError: If a field is out of range.
        """
        fields_of_node = {
            "id": len(self._nodes) + 1,
            "parent": self.head if parent == _HEAD else parent,
            "role": role,
            "content": content,
            "token_ids": None if token_ids is None else list(token_ids),
            "finish_reason": finish_reason,
            "seed": seed,
            "settings": None if settings is None else dict(settings),
            "stats": None if stats is None else dict(stats),
            "model": model,
            "model_name": model_name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "note": note,
            "replaces": replaces,
        }
        node = Node(**check_node_fields(fields_of_node))
        self._insert(node)
        self._notify(node.as_event())
        return node

    def select(self, node_id: int | None) -> None:
        """Make `node_id` the head; None starts over.

        Raises:
            UsageError: If the turn does not exist.
        """
        if node_id != self.head:
            self._set_head(node_id)
            self._notify({"head": node_id})

    def set_system(self, text: str | None) -> None:
        """Set the system prompt; None removes it."""
        if text != self.system:
            self._change({"system": text})

    def set_title(self, text: str) -> None:
        """Set the title."""
        if text != self.title:
            self._change({"title": text})

    def drop(self, ids: Iterable[int], summary: str | None = None) -> None:
        """Stop sending these turns of the path, and send `summary` as a user message in their place.

        This affects every path that contains all of them: after an undo to one of them, they are sent again. A later
        drop replaces the drops that it overlaps.

        Args:
            ids: The turns; if empty, all turns are sent again.
            summary: Text sent instead, if any.

        Raises:
            UsageError: If an id is invalid.
        """
        self._change(_drop_event(sorted(ids), summary))

    def dropped(self, node_id: int | None = _HEAD) -> frozenset[int]:
        """Return the ids of turns on the path to `node_id` (default: the head) that are not sent."""
        return frozenset().union(*(drop.ids for drop in self.active_drops(node_id)))

    def messages(
        self, node_id: int | None = _HEAD, as_message: Callable[[Node], Message] = Node.as_message
    ) -> list[Message]:
        """Return the messages for a model: the system prompt, if any, and the path without dropped turns.

        Args:
            node_id: Last turn of the path (default: the head).
            as_message: Returns a turn as the message that the model receives.
        """
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system is not None else []
        summaries = {min(drop.ids): drop.summary for drop in self.active_drops(node_id)}
        dropped = self.dropped(node_id)
        for node in self.path(node_id):
            summary = summaries.get(node.id)
            if summary is not None:
                found.append({"role": "user", "content": summary})
            if node.id not in dropped:
                found.append(as_message(node))
        return found

    def fork(self) -> Tree:
        """Return a new tree with only the path to the head, its turns renumbered."""
        copy = Tree()
        copy.system, copy.title = self.system, self.title
        new_ids: dict[int, int] = {}
        for node in self.path():
            new_ids[node.id] = len(new_ids) + 1
            values = node.as_event()["node"] | {
                "id": new_ids[node.id],
                "parent": None if node.parent is None else new_ids[node.parent],
                "replaces": None,
            }
            copy.apply({"node": values})
        for drop in self.active_drops(self.head):
            copy.apply(_drop_event(sorted(new_ids[node_id] for node_id in drop.ids), drop.summary))
        return copy

    def active_drops(self, node_id: int | None) -> list[Drop]:
        """Return the drops in effect on the path to `node_id`; none of them overlap."""
        on_path = {node.id for node in self.path(node_id)}
        return [drop for drop in self._drops.values() if drop.ids <= on_path]

    def _change(self, event: Event) -> None:
        self.apply(event)
        self._notify(event)

    def _notify(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)

    def _insert(self, node: Node) -> None:
        if node.parent is not None:
            self.node(node.parent)
        if node.replaces is not None:
            if self.node(node.replaces).parent != node.parent:
                raise UsageError(f"turn {node.id} cannot replace turn {node.replaces}, which has another parent")
            self._replaced_ids.add(node.replaces)
        self._nodes.append(node)
        self._children[node.id] = []
        self._children[node.parent].append(node.id)
        self._set_head(node.id)

    def _set_head(self, node_id: int | None) -> None:
        if node_id is not None:
            node_id = self.node(node_id).id
            self._visited_heads.pop(node_id, None)
            self._visited_heads[node_id] = None
        self.head = node_id

    def _last_children(self) -> dict[int | None, int]:
        """Return the child of each turn (None: of the beginning) through which the path went last.

        This is computed on demand, because a file may move the head very often along a deep path.
        """
        last_children: dict[int | None, int] = {}
        for visited in reversed(self._visited_heads):
            at: int | None = visited
            # A later visit that passed this turn also passed all turns before it.
            while at is not None and (parent := self._nodes[at - 1].parent) not in last_children:
                last_children[parent], at = at, parent
        return last_children

    def _drop(self, ids: list[int], summary: str | None) -> None:
        dropped_ids = frozenset(ids)
        for node_id in dropped_ids:
            self.node(node_id)
        if not dropped_ids:
            self._drops.clear()
            self._dropped_by.clear()
            return
        # Each turn joins and leaves a drop once, so the total cost is proportional to the number of ids.
        for node_id in dropped_ids:
            overlapped = self._dropped_by.get(node_id)
            if overlapped is not None:
                for other in self._drops.pop(overlapped).ids:
                    del self._dropped_by[other]
        self._drops[self._next_drop] = Drop(dropped_ids, summary)
        self._dropped_by |= dict.fromkeys(dropped_ids, self._next_drop)
        self._next_drop += 1


def _drop_event(ids: list[int], summary: str | None) -> Event:
    return {"dropped": ids} if summary is None else {"dropped": ids, "summary": summary}
