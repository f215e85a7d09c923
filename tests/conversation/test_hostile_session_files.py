"""Hostile session files: reading any file takes linear time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwchat.conversation import session_file
from qwchat.conversation.event_checks import check_node_fields
from qwchat.conversation.export import EXPORT_FORMATS, Transcript, export_transcript
from qwchat.conversation.session_file import SessionFile, SessionHeader, parse_session
from qwchat.conversation.session_store import SessionStore
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import SessionError, UsageError

Many = Callable[[int], list[Any]]


def node(number: int, parent: int | None, content: str = "x", **more: object) -> Event:
    role = "assistant" if number % 2 == 0 else "user"
    return {"node": {"id": number, "parent": parent, "role": role, "content": content, **more}}


def chain(count: int) -> list[Event]:
    return [node(number, number - 1 or None) for number in range(1, count + 1)]


def star(count: int) -> list[Event]:
    return [node(1, None), *(node(number, 1) for number in range(2, count + 1))]


def roots(count: int) -> list[Event]:
    return [{"dropped": [number]} for number in range(1, count + 1)]


MANY: dict[str, Many] = {
    "a deep path": chain,
    "many branches": star,
    "many beginnings": lambda n: [node(number, None) for number in range(1, n + 1)],
    "replies that each replace one": lambda n: [
        node(1, None),
        node(2, 1),
        *(node(k, 1, replaces=k - 1) for k in range(3, n)),
    ],
    "one turn dropped often": lambda n: [node(1, None), *[{"dropped": [1], "summary": "s"}] * n],
    "all turns dropped one by one": lambda n: [*chain(n), *roots(n)],
    "one drop over those of all": lambda n: [
        *chain(n),
        *({"dropped": [k]} for k in range(1, n + 1)),
        {"dropped": [1, n]},
    ],
    "drops that swallow and free": lambda n: [
        *chain(n),
        *[{"dropped": list(range(1, 30))}, {"dropped": []}] * (n // 30),
    ],
    "drops of branches": lambda n: [*star(n), *roots(n), {"head": 2}],
    "overlapping drops": lambda n: [*chain(n), *({"dropped": [k, k + 1]} for k in range(1, n))],
    "heads to and fro": lambda n: [*chain(n), *({"head": 1 + k * 7919 % n} for k in range(n))],
    "one head again and again": lambda n: [node(1, None), *[{"head": None}, {"head": 1}] * n],
    "titles": lambda n: [node(1, None), *({"title": f"t{k}"} for k in range(n))],
    "system prompts": lambda n: [node(1, None), *({"system": f"s{k}"} for k in range(n))],
    "ids that are there already": lambda n: [node(1, None)] * n,
    "parents that are not there": lambda n: [node(1, None), *(node(2, 10**6) for _ in range(n))],
    "lines that are not JSON": lambda n: [node(1, None), *["{"] * n],
    "empty lines": lambda n: [node(1, None), *[""] * n],
    "one long question": lambda n: [node(1, None, "word? " * n)],
    "a question of many lines": lambda n: [node(1, None, "line\n" * n)],
    "a question of files": lambda n: [node(1, None, "File a:\n\n```\nx\n```\n\n" * n)],
    "a question of backticks": lambda n: [node(1, None, "File a:\n\n" + "`" * n)],
    "a reply of fences": lambda n: [node(1, None), node(2, 1, "```\n" * n)],
    "a reply of brackets": lambda n: [node(1, None), node(2, 1, "[![](" * n)],
    "a reply of emphasis": lambda n: [node(1, None), node(2, 1, "*_a **b " * n)],
    "a reply of quotes": lambda n: [node(1, None), node(2, 1, ">" * n + "a\n" * n)],
    "many token ids": lambda n: [node(1, None), node(2, 1, token_ids=list(range(n)))],
    "wide settings": lambda n: [node(1, None, settings={f"k{k}": k for k in range(n)})],
}


def data_of(events: list[Any]) -> bytes:
    header = {"format": session_file.FORMAT, "version": session_file.VERSION}
    lines = [event if isinstance(event, str) else json.dumps(event) for event in (header, *events)]
    return "".join(f"{line}\n" for line in lines).encode()


def read_everything(store: SessionStore, session: str) -> None:
    """Read a session as list, show, export, grep and a resumed chat do."""
    [entry] = store.entries()
    content = store.read(session)
    tree = content.tree
    tree.messages()
    tree.tip(None)
    tree.fork()
    list(tree.events())
    tree.siblings(1)
    for form in EXPORT_FORMATS:
        export_transcript(Transcript(tree, "mini", entry.id), form)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_reading_takes_linear_time(tmp_path: Path, kind: str) -> None:
    def cost(count: int) -> float:
        folder = tmp_path / "a1"
        folder.mkdir(exist_ok=True)
        data = data_of(MANY[kind](count))
        (folder / session_file.FILE_NAME).write_bytes(data)
        began = time.process_time()
        read_everything(SessionStore(tmp_path), "a1")
        return time.process_time() - began

    cost(100)
    small = min(cost(400) for _ in range(3))
    assert min(cost(4_000) for _ in range(2)) < 40 * small  # Ten times the size: a factor of 10, or 100 if quadratic.


@pytest.mark.parametrize("columns", [1_000, 30])
def test_a_table_of_empty_cells_takes_linear_time(columns: int) -> None:
    def cost(text: str) -> float:
        began = time.process_time()
        tree = Tree.replay([node(1, None), node(2, 1, text)])
        for form in EXPORT_FORMATS:
            export_transcript(Transcript(tree, "mini"), form)
        return time.process_time() - began

    rows = "|\n" * 4_000
    table = "|a" * columns + "|\n" + "|-" * columns + "|\n" + rows + "```"
    cost("x")
    assert min(cost(table) for _ in range(2)) < 10 * min(cost("a *b* `c`\n" * (len(table) // 10)) for _ in range(2))


def test_drops_handle_each_turn_once() -> None:
    """Count the work instead of timing it: without the index, 20,000 events made 200 million comparisons."""
    tree = Tree.replay([*chain(1_000), *({"dropped": [k, k + 1]} for k in range(1, 1_000))])
    touched = 0

    class Counted(dict[int, Any]):
        def pop(self, key: int, *default: Any) -> Any:
            nonlocal touched
            touched += 1
            return super().pop(key, *default)

        def values(self) -> Any:
            nonlocal touched
            touched += len(self)
            return super().values()

    tree._drops = Counted(tree._drops)
    for number in range(20_000):
        tree.apply({"dropped": [1 + number % 1_000]})
    assert touched <= 21_000
    assert sorted(turn for drop in tree.drops for turn in drop.ids) == list(range(1, 1_001))


def test_a_file_with_too_many_lines_is_refused_and_not_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "MAX_LINES", 10)
    with pytest.raises(SessionError, match="session a1 has more than 10 lines, so it is damaged: qwchat sess"):
        parse_session(data_of([""] * 10), "a1")
    assert parse_session(data_of([""] * 9), "a1").invalid_lines == 9
    (tmp_path / "a1").mkdir()
    file = SessionFile.create(tmp_path / "a1", SessionHeader("a1", "2026-11-24T02:03:04+00:00"))
    file.append([{"head": None}] * 9)
    with pytest.raises(SessionError, match="session a1 has reached its limit of 10 lines: start a new session"):
        file.append([{"head": None}])
    file.close()
    file, content = SessionFile.reopen(tmp_path / "a1")
    assert content.invalid_lines == 0
    with pytest.raises(SessionError, match="session a1 has reached its limit of 10 lines: start a new session"):
        file.append([{"head": None}])
    file.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"head": ' + "9" * 4_301 + "}",
        '{"head": ' + "9" * 4_299 + "}",
        '{"head": 1e999}',
        '{"head": NaN}',
        '{"head": -Infinity}',
        '{"title": "\\ud800"}',
        *('{"head": ' + "[" * depth + "]" * depth + "}" for depth in (10, 800, 900, 950, 980, 990, 995, 100_000)),
        '{"head": [' + "[]," * 3_000_000 + "[]]}",
        *(
            json.dumps(node(2, 1, **fields))
            for fields in (
                {"settings": {"a": 10**400}},
                {"stats": {"a": -(10**400)}},
                {"settings": {"a": float("nan")}},
                {"settings": {"a": float("inf")}},
                {"settings": {"a": "\ud800"}},
                {"settings": {"\ud800": 1}},
                {"settings": {"a": [[[[[[[[[1]]]]]]]]]}},
                {"stats": json.loads('{"a":' * 400 + "1" + "}" * 400)},
                {"created": "2026-01-31\x1b12:00:00"},
                {"created": "2026-01-31\u202e12:00:00"},
                {"seed": 2**64},
                {"token_ids": [2**31]},
                {"token_ids": [1.5]},
                {"note": "x" * 10_000},
            )
        ),
    ],
    ids=lambda line: line[:40],
)
def test_invalid_events_are_skipped(line: str) -> None:
    content = parse_session(data_of([node(1, None), line, node(2, 1, "ok")]), "a1")
    assert content.invalid_lines == 1
    assert [turn.content for turn in content.tree.path()] == ["x", "ok"]
    for form in EXPORT_FORMATS:
        export_transcript(Transcript(content.tree, "mini"), form)


def test_events_written_by_the_program_are_valid() -> None:
    record = {
        "temp": 0.7,
        "seed": 2**64 - 1,
        "stop": ("a", "é🙂"),
        "choices": None,
        "schema": "{" * 1000,
        "deep": {"a": [1]},
    }
    given = {"id": 1, "parent": None, "role": "user", "content": "x", "settings": record}
    assert check_node_fields(given)["settings"] == record | {"stop": ["a", "é🙂"]}
    with pytest.raises(UsageError, match="settings is nested more than 8 levels deep"):
        check_node_fields(given | {"settings": {"a": [[[[[[[[1]]]]]]]]}})


def test_header_fields_of_any_type() -> None:
    for value in ("[" * 900 + "]" * 900, "9" * 4_301, "NaN", '"\\ud800"', "{}"):
        line = f'{{"format": "qwchat session", "version": 1, "created": {value}, "model": {value}, "name": {value}}}\n'
        with suppress(SessionError):
            assert parse_session(line.encode(), "a1").header == SessionHeader("a1", "")
