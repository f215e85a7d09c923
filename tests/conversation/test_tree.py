"""The tree of turns: paths, events and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.conversation.tree import Event, Node, Tree
from qwchat.errors import SessionError, UsageError
from tests.tiers import count


def make_tree(*contents: str) -> Tree:
    """Return a conversation of alternating questions and replies."""
    tree = Tree()
    for number, content in enumerate(contents):
        tree.add("assistant" if number % 2 else "user", content)
    return tree


def contents(tree: Tree) -> list[str]:
    return [message["content"] for message in tree.messages()]


def test_messages_are_the_system_prompt_and_the_path() -> None:
    tree = make_tree("Hello", "Hi.", "Name?")
    tree.set_system("Be brief.")
    tree.add("assistant", "Mini.", token_ids=[7, 8], finish_reason="stop", seed=3, model="0123abcd")
    assert tree.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Name?"},
        {"role": "assistant", "content": "Mini.", "token_ids": (7, 8)},
    ]
    assert [node.id for node in tree.path()] == [1, 2, 3, 4]
    assert tree.head == 4


def test_a_retry_is_a_sibling_and_each_continuation_is_kept() -> None:
    tree = make_tree("Hello", "Hi.", "Name?", "Mini.")
    other = tree.add("assistant", "Good day.", parent=1)
    assert contents(tree) == ["Hello", "Good day."]
    assert [node.content for node in tree.siblings(other.id)] == ["Hi.", "Good day."]
    assert [node.content for node in tree.children(None)] == ["Hello"]
    assert (tree.tip(2), tree.tip(other.id)) == (4, 5)
    tree.select(tree.tip(2))
    assert contents(tree) == ["Hello", "Hi.", "Name?", "Mini."]
    tree.select(None)
    assert contents(tree) == []
    assert tree.tip(1) == 4


def test_a_continued_reply_replaces_its_beginning() -> None:
    tree = make_tree("Count", "one")
    tree.add("assistant", "one two", parent=1, replaces=2)
    assert [node.content for node in tree.siblings(3)] == ["one two"]
    assert contents(tree) == ["Count", "one two"]
    # A file may move the head back to the continued reply.
    tree.select(2)
    assert [node.content for node in tree.siblings(2)] == ["one", "one two"]
    tree.select(3)
    with pytest.raises(UsageError, match="turn 4 cannot replace turn 1, which has another parent"):
        tree.add("user", "more", replaces=1)


def test_dropped_turns_are_not_sent_on_paths_with_all_of_them() -> None:
    tree = make_tree("a", "b", "c", "d", "e")
    tree.drop([1, 2], "Once there was a and b.")
    assert contents(tree) == ["Once there was a and b.", "c", "d", "e"]
    assert tree.dropped() == {1, 2}
    tree.drop([1, 2, 3, 4])
    assert contents(tree) == ["e"]
    tree.select(3)
    assert contents(tree) == ["a", "b", "c"]
    tree.select(5)
    tree.drop([])
    assert contents(tree) == ["a", "b", "c", "d", "e"]
    with pytest.raises(UsageError, match="this conversation has no turn 9"):
        tree.drop([9])


def test_a_fork_contains_only_the_path() -> None:
    tree = make_tree("Hello", "Hi.", "Name?", "Mini.")
    tree.set_system("Be brief.")
    tree.add("assistant", "Good day.", parent=1)
    tree.add("user", "And you?")
    tree.drop([1])
    fork = tree.fork()
    assert fork.messages() == tree.messages()
    assert [(node.id, node.parent, node.content) for node in fork.nodes] == [
        (1, None, "Hello"),
        (2, 1, "Good day."),
        (3, 2, "And you?"),
    ]
    fork.add("assistant", "Me too.")
    assert len(tree.nodes) == 6


def test_each_change_is_one_json_event() -> None:
    told: list[Event] = []
    tree = Tree(listener=told.append)
    tree.set_system("Be brief.")
    tree.set_system("Be brief.")
    node = tree.add("user", "Hello", seed=5, settings={"temp": 0.5})
    tree.set_title("Greetings")
    tree.select(node.id)
    tree.select(None)
    tree.drop([1], "…")
    assert json.loads(json.dumps(told)) == [
        {"system": "Be brief."},
        {
            "node": {
                "id": 1,
                "parent": None,
                "role": "user",
                "content": "Hello",
                "seed": 5,
                "settings": {"temp": 0.5},
                "created": node.created,
            }
        },
        {"title": "Greetings"},
        {"head": None},
        {"dropped": [1], "summary": "…"},
    ]


def test_events_are_independent_of_the_arguments() -> None:
    given: dict[str, Any] = {"stop": ["a"]}
    tree = Tree()
    node = tree.add("user", "Hello", settings=given)
    given["stop"].append("b")
    assert node.settings == {"stop": ["a"]}


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ([], "an event must be an object, not []"),
        ({}, "an event must be one of node, head, system, title, dropped, not []"),
        (
            {"head": 1, "title": "x"},
            "an event must be one of node, head, system, title, dropped, not ['head', 'title']",
        ),
        ({"head": 1, "summary": "x"}, "an event must be one of"),
        ({"head": 2}, "this conversation has no turn 2"),
        ({"head": "1"}, "head must be an integer from 1 to 2147483647, not '1'"),
        ({"head": True}, "head must be an integer from 1 to 2147483647, not True"),
        ({"head": 0}, "head must be an integer from 1 to 2147483647, not 0"),
        ({"system": 5}, "system must be text, not 5"),
        ({"title": None}, "title must be text, not None"),
        ({"title": "\ud800"}, "title contains a lone surrogate at position 0"),
        ({"dropped": 1}, "dropped must be a list, not 1"),
        ({"dropped": [2]}, "this conversation has no turn 2"),
        ({"dropped": [1], "summary": 1}, "summary must be text, not 1"),
        ({"node": []}, "node must be an object, not []"),
        ({"node": {"id": 1}}, "role must be user or assistant, not None"),
        ({"node": {"id": 2, "role": "system", "content": ""}}, "role must be user or assistant, not 'system'"),
        ({"node": {"id": 3, "role": "user", "content": ""}}, "the node's id is 3, but the next id is 2"),
        ({"node": {"id": 2, "parent": 2, "role": "user", "content": ""}}, "this conversation has no turn 2"),
        ({"node": {"id": 2, "role": "user"}}, "content must be text, not None"),
        ({"node": {"id": 2, "role": "user", "content": "", "token_ids": [-1]}}, "token_ids must be an integer"),
        ({"node": {"id": 2, "role": "user", "content": "", "token_ids": "12"}}, "token_ids must be a list, not '12'"),
        ({"node": {"id": 2, "role": "user", "content": "", "seed": 1 << 64}}, "seed must be an integer from 0"),
        ({"node": {"id": 2, "role": "user", "content": "", "seed": 0.5}}, "seed must be an integer from 0"),
        ({"node": {"id": 2, "role": "user", "content": "", "settings": 5}}, "settings must be an object, not 5"),
        (
            {"node": {"id": 2, "role": "user", "content": "", "stats": {"a": float("nan")}}},
            "stats cannot be stored as JSON",
        ),
        ({"node": {"id": 2, "role": "user", "content": "", "note": "x" * 201}}, "note is longer than 200 characters"),
        (
            {"node": {"id": 2, "role": "user", "content": "", "created": "now"}},
            "created must be a time such as 2026-01-31",
        ),
        ({"node": {"id": 2, "role": "user", "content": "", "evil": 1}}, "a node has an unknown field 'evil'"),
        (
            {"node": {"id": 2, "role": "user", "content": "", "replaces": 1, "parent": 1}},
            "turn 2 cannot replace turn 1",
        ),
    ],
)
def test_invalid_events(event: Any, complaint: str) -> None:
    first = {"node": {"id": 1, "parent": None, "role": "user", "content": "Hello"}}
    with pytest.raises(SessionError) as caught:
        Tree.replay([first, event])
    assert str(caught.value).startswith(f"event 2: {complaint}")


def test_a_long_path_is_replayed_quickly() -> None:
    events = [{"node": {"id": n, "parent": n - 1 or None, "role": "user", "content": "x"}} for n in range(1, 20_001)]
    assert len(Tree.replay(events).path()) == 20_000


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["user", "assistant"]), TEXTS, st.integers(0, 20)),
        st.tuples(st.just("select"), st.integers(0, 20)),
        st.tuples(st.just("system"), st.none() | TEXTS),
        st.tuples(st.just("title"), TEXTS),
        st.tuples(st.just("drop"), st.lists(st.integers(1, 20), max_size=3), st.none() | TEXTS),
        st.tuples(st.just("continue"), TEXTS),
    ),
    max_size=30,
)


def apply_random_change(tree: Tree, change: Any) -> None:
    """Apply one random change; ids beyond the last one stand for None."""
    count = len(tree.nodes)
    if change[0] == "add":
        parent = change[3] if 1 <= change[3] <= count else None
        tree.add(change[1], change[2], parent=parent, token_ids=[1] if change[1] == "assistant" else None)
    elif change[0] == "select":
        tree.select(change[1] if 1 <= change[1] <= count else None)
    elif change[0] == "system":
        tree.set_system(change[1])
    elif change[0] == "title":
        tree.set_title(change[1])
    elif change[0] == "drop":
        tree.drop([node_id for node_id in change[1] if node_id <= count], change[2])
    elif tree.head is not None:
        head = tree.node(tree.head)
        tree.add(head.role, head.content + change[1], parent=head.parent, replaces=head.id)


def state(tree: Tree) -> tuple[Any, ...]:
    tips = [tree.tip(node.id) for node in tree.nodes]
    children = [tree.children(node_id) for node_id in (None, *(node.id for node in tree.nodes))]
    return tree.nodes, tree.head, tree.system, tree.title, tree.drops, tree.messages(), children, tips


@settings(max_examples=count(150, 30), deadline=None)
@given(CHANGES)
def test_recorded_and_listed_events_rebuild_the_tree(changes: list[Any]) -> None:
    told: list[Event] = []
    tree = Tree(listener=told.append)
    for change in changes:
        apply_random_change(tree, change)
    assert state(Tree.replay(json.loads(json.dumps(told)))) == state(tree)
    listed = Tree.replay(json.loads(json.dumps(list(tree.events()))))
    assert state(listed)[:-1] == state(tree)[:-1]
    assert Tree.replay(tree.fork().events()).messages() == tree.messages()


@settings(max_examples=count(150, 30), deadline=None)
@given(CHANGES)
def test_changes_never_remove_turns(changes: list[Any]) -> None:
    tree = Tree()
    nodes: tuple[Node, ...] = ()
    for change in changes:
        apply_random_change(tree, change)
        assert tuple(tree.nodes)[: len(nodes)] == nodes
        nodes = tuple(tree.nodes)
        path = tree.path()
        assert [node.parent for node in path] == [None, *(node.id for node in path)][: len(path)]
        assert tree.tip(path[-1].id) in {node.id for node in nodes} if path else tree.head is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=4,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just(1) | JSON,
        "parent": st.none() | JSON,
        "role": st.just("user") | JSON,
        "content": st.text(max_size=3) | JSON,
        **dict.fromkeys(("token_ids", "seed", "settings", "stats", "created", "note", "replaces", "model"), JSON),
    },
)


@settings(max_examples=count(300, 60), deadline=None)
@given(st.lists(st.fixed_dictionaries({"node": FIELDS}) | JSON, min_size=1, max_size=3))
def test_any_file_is_a_conversation_or_refused_on_one_line(events: list[Any]) -> None:
    complaint, tree = "", Tree()
    try:
        tree = Tree.replay(events)
    except SessionError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert len(tree.path()) <= len(tree.nodes)
    json.dumps(list(tree.events()), allow_nan=False)
