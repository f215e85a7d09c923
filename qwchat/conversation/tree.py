"""A conversation as a tree: every question and reply is a node, and nothing that was said is ever taken out of it.

Undoing moves the head towards the root, another answer is a sibling, and what is sent to a model is the path from the
first turn to the head.  Each change is an event, a dict of JSON values, so that a file of events is the conversation:

    {"node": {...}}                        a turn was added and is the head now (fields of Node; None is left out)
    {"head": id | null}                    another turn is the head; null: none, the conversation begins anew
    {"system": text | null}                the system prompt changed
    {"title": text}                        the conversation has this name
    {"dropped": [ids], "summary": text}    these turns are not sent any more (see Tree.drop); no ids: all are sent again
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
_HEAD: Final = -1  # stands for "the head, whichever that is"


@dataclass(frozen=True)
class Node:
    """One turn.

    Attributes:
        id: 1, 2, … in order of creation.
        parent: id of the turn before it; None where it begins the conversation.
        role: "user" or "assistant".
        content: its text.
        token_ids: the ids that the model wrote, of a reply that nobody has changed.
        finish_reason: how the reply ended (see qwchat.events.FinishReason).
        seed: of the reply's draws; of a question: with which it is being answered, so that a reply that was never
            finished can be given again.
        settings: with which the reply was made (of a question: is being made), by their names in
            qwchat.chat.reply_settings.
        stats: counts and times of the reply (fields of qwchat.events.Stats).
        model: fingerprint of the model that replied.
        created: when, ISO 8601 in UTC.
        note: what is special about it, such as "edited".
        replaces: id of the sibling that this one continues; that one is no alternative any more.
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
    created: str = ""
    note: str | None = None
    replaces: int | None = None

    def as_event(self) -> Event:
        """The event of adding this node."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.token_ids is not None:
            values["token_ids"] = list(self.token_ids)
        return {"node": {name: value for name, value in values.items() if value is not None or name == "parent"}}

    def as_message(self, *, with_ids: bool = True) -> Message:
        """The turn as a model takes it; `with_ids`: with the token ids of a reply, where there are any."""
        message: Message = {"role": self.role, "content": self.content}
        if with_ids and self.token_ids is not None and self.role == "assistant":
            message["token_ids"] = self.token_ids
        return message


@dataclass(frozen=True)
class Drop:
    """Turns that are not sent any more, and what is sent in their place."""

    ids: frozenset[int]
    summary: str | None


class Tree:
    """The turns of one conversation.

    `head`: id of the turn that is the newest on the path, None before the first; `listener`: is told every change,
    after it was made, as an event.
    """

    def __init__(self, listener: Callable[[Event], None] | None = None) -> None:
        self.listener = listener
        self.head: int | None = None
        self.system: str | None = None
        self.title: str | None = None
        self._nodes: list[Node] = []
        self._children: dict[int | None, list[int]] = {None: []}
        self._visited_heads: dict[int, None] = {}  # heads, the latest last; of each turn its latest visit
        self._replaced_ids: set[int] = set()
        self._drops: dict[int, Drop] = {}  # by number, in order of creation
        self._dropped_by: dict[int, int] = {}  # which of them leaves a turn out
        self._next_drop = 0

    @classmethod
    def replay(cls, events: Iterable[Mapping[str, Any]]) -> Tree:
        """The tree that `events` tell of; they may come from anywhere.  Raises SessionError."""
        tree = cls()
        for number, event in enumerate(events, 1):
            try:
                tree.apply(event)
            except UsageError as error:
                raise SessionError(f"event {number}: {error}") from error
        return tree

    def apply(self, event: Mapping[str, Any]) -> None:
        """Makes the change that `event` tells of, and tells nobody.  Raises UsageError: it is no such event."""
        kind, value = check_event(event)
        if kind == "node":
            node = Node(**check_node_fields(value))
            if node.id != len(self._nodes) + 1:
                raise UsageError(f"the node's id is {node.id} where {len(self._nodes) + 1} is next")
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
        """The events that rebuild this tree."""
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
        """The turns that are left out, by the drops that hold; none of them overlap."""
        return list(self._drops.values())

    @property
    def nodes(self) -> Sequence[Node]:
        """All turns in order of creation."""
        return tuple(self._nodes)

    def node(self, node_id: int) -> Node:
        """The turn with this id.  Raises UsageError: there is none."""
        if not 1 <= node_id <= len(self._nodes):
            raise UsageError(f"this conversation has no turn {node_id}")
        return self._nodes[node_id - 1]

    def path(self, node_id: int | None = _HEAD) -> list[Node]:
        """The turns from the first one to `node_id` (the head if not given)."""
        found = []
        at = self.head if node_id == _HEAD else node_id
        while at is not None:
            found.append(self.node(at))
            at = found[-1].parent
        return found[::-1]

    def children(self, node_id: int | None) -> list[Node]:
        """What was said after `node_id`, first to last; None: how the conversation began."""
        if node_id is not None:
            self.node(node_id)
        return [self._nodes[child - 1] for child in self._children[node_id] if child not in self._replaced_ids]

    def siblings(self, node_id: int) -> list[Node]:
        """The alternatives at the place of `node_id`, itself included, first to last."""
        parent = self.node(node_id).parent
        shown = {node_id, *(child.id for child in self.children(parent))}
        return [self._nodes[child - 1] for child in self._children[parent] if child in shown]

    def tip(self, node_id: int | None) -> int | None:
        """Where the path through `node_id` (None: the beginning) went on to when it was last taken."""
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
        note: str | None = None,
        replaces: int | None = None,
    ) -> Node:
        """Adds a turn behind `parent` (the head if not given) and makes it the head.  Fields: see Node.

        Raises UsageError: a field is out of its range.
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
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "note": note,
            "replaces": replaces,
        }
        node = Node(**check_node_fields(fields_of_node))
        self._insert(node)
        self._notify(node.as_event())
        return node

    def select(self, node_id: int | None) -> None:
        """Makes `node_id` the head; None: the conversation begins anew.  Raises UsageError: there is no such turn."""
        if node_id != self.head:
            self._set_head(node_id)
            self._notify({"head": node_id})

    def set_system(self, text: str | None) -> None:
        """Gives the conversation another system prompt, or none."""
        if text != self.system:
            self._change({"system": text})

    def set_title(self, text: str) -> None:
        """Gives the conversation a name."""
        if text != self.title:
            self._change({"title": text})

    def drop(self, ids: Iterable[int], summary: str | None = None) -> None:
        """Leaves these turns of the path out of `messages`, and puts `summary` as a user's turn in their place.

        It holds for every path that goes through all of them: after undoing back to one of them they are sent again.
        What is dropped later replaces what it overlaps.  No ids: everything is sent again.  Raises UsageError.
        """
        self._change(_drop_event(sorted(ids), summary))

    def dropped(self, node_id: int | None = _HEAD) -> frozenset[int]:
        """The ids on the path to `node_id` (the head if not given) that are not sent."""
        return frozenset().union(*(drop.ids for drop in self.active_drops(node_id)))

    def messages(
        self, node_id: int | None = _HEAD, ids_valid: Callable[[Node], bool] = lambda node: True
    ) -> list[Message]:
        """What a model is sent: the system prompt, where there is one, and the path without what was dropped.

        `node_id`: where the path ends, the head if not given; `ids_valid`: whether a node's token ids are the
        model's own, or its text is to be encoded anew.
        """
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system is not None else []
        summaries = {min(drop.ids): drop.summary for drop in self.active_drops(node_id)}
        dropped = self.dropped(node_id)
        for node in self.path(node_id):
            summary = summaries.get(node.id)
            if summary is not None:
                found.append({"role": "user", "content": summary})
            if node.id not in dropped:
                found.append(node.as_message(with_ids=ids_valid(node)))
        return found

    def fork(self) -> Tree:
        """A tree of its own that holds the path to the head, its turns numbered anew, and nothing else."""
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
        """The drops that hold for the path to `node_id`, none of which overlap."""
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
        """The child of each turn (None: of the beginning) through which the path went last.

        Found out when it is asked for, since a file may move the head as often as it likes along as deep a path.
        """
        last_children: dict[int | None, int] = {}
        for visited in reversed(self._visited_heads):
            at: int | None = visited
            # Where a later visit has passed, it has passed all that lies before too.
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
        # Each turn is put under one drop and taken from it once, so all drops together cost what their ids cost.
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
