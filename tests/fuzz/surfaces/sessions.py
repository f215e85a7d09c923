"""Session files: headers and events, their order and their number."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, SESSION, Base, session_lines
from tests.fuzz.case import OK, RUNTIME, TOO_LONG, USAGE, Case, Command, Content, Files, command

NAME = "sessions"
FILE = f"sessions/{SESSION}/session.jsonl"
_READERS: tuple[Command, ...] = (
    command("sessions", "list", "--json", codes=(OK,), json=True),
    command("sessions", "show", SESSION, "--json", codes=(OK, RUNTIME, USAGE), json=True),
    command("sessions", "show", SESSION, codes=(OK, RUNTIME, USAGE)),
    command("sessions", "grep", "hello|x", codes=(OK, RUNTIME)),
    *(
        command(
            *("sessions", "export", SESSION, f"{{case}}/work/made.{form}"),
            codes=(OK, RUNTIME, USAGE),
            harmless=f"work/made.{form}",
        )
        for form in ("md", "html", "json")
    ),
)
_TYPED = (
    b"/alt\n/undo\n/redo\n/alt 1\n/context\n/stats\nhello\n/retry\n/drop 1\n/edit 1\n/export made.md\n/fork other\n"
)
# With a prompt, the model evaluates the conversation, which may not fit (exit code 4).
_ASKING = (
    command("-p", "hi", "-m", "{case}/model", "--resume", SESSION, *QUESTION, codes=(OK, RUNTIME, USAGE, TOO_LONG)),
    command("chat", "-m", "{case}/model", "--resume", SESSION, *QUESTION, codes=(OK, RUNTIME, USAGE, TOO_LONG)),
    command(
        "-p", "hi", "-m", "{case}/model", "-c", "--overflow", "drop", *QUESTION, codes=(OK, RUNTIME, USAGE, TOO_LONG)
    ),
    command(
        *("chat", "-m", "{case}/model", "--resume", SESSION, *QUESTION),
        codes=(OK, RUNTIME, USAGE, TOO_LONG),
        stdin=_TYPED,
        harmless="work/made.md",
        most_lines=60,
    ),
)


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    maker = random.choice((_events, _events, _events, _mutated, _mutated, _many, _damage, _strange))
    content = maker(random, base)
    files: Files = {FILE: content}
    if random.random() < 0.1:
        files["sessions/" + random.choice(("ffff0000", "x" * 64, "..x", "a b"))] = mutations.strange_file(random, b"{}")
    commands = (random.choice(_READERS), random.choice((*_READERS, *_ASKING)))
    copies = (("model", base.model), (f"sessions/{SESSION}", base.session))
    return Case(NAME, number, maker.__name__.strip("_"), files, commands, copies=copies)


def header(**changes: Any) -> bytes:
    """Return the first line of a session file."""
    values = {"format": "qwchat session", "version": 1, "id": SESSION, "created": "2026-01-31T12:00:00+00:00"}
    return json.dumps({**values, "model": "tiny", "fingerprint": "", "name": "", **changes}).encode() + b"\n"


def event(random: Random, nodes: int) -> dict[str, Any]:
    """Return an event that may fit a tree of `nodes` nodes."""
    kind = random.randrange(12)
    one = random.randrange(1, nodes + 2)
    if kind < 6:
        role = ("user", "assistant")[nodes % 2] if random.random() < 0.9 else random.choice(("user", "assistant"))
        node: dict[str, Any] = {
            "id": nodes + 1,
            "parent": random.choice((nodes or None, nodes or None, nodes or None, one, None)),
            "role": role,
            "content": random.choice(
                ("hello you", "x" * 300, mutations.text(random), "a *b* `c`\n\n| d | e |\n|-|-|\n| f |")
            ),
        }
        if role == "assistant":
            node["token_ids"] = [random.randrange(290) for _ in range(random.randrange(5))]
            node["finish_reason"] = random.choice(("stop", "length", "cancelled", mutations.text(random)[:150]))
            node["settings"] = random.choice(({"temp": 0.5, "top-k": 3}, mutations.value(random), {}))
            node["stats"] = random.choice((None, {"prompt_tokens": 5}, mutations.value(random)))
            node["seed"] = random.choice((1, 1 << 31, mutations.value(random)))
            node["model"] = "0" * 16
        if random.random() < 0.1:
            node[random.choice(("replaces", "note", "created", "summary", "parent"))] = random.choice(
                (one, mutations.value(random))
            )
        return {"node": node}
    if kind < 8:
        return {"head": random.choice((one, one, None, 0, -1, 1 << 40))}
    if kind == 8:
        return {"system": random.choice((None, "Be brief.", mutations.text(random)))}
    if kind == 9:
        return {"title": mutations.text(random)}
    dropped = {"dropped": [random.randrange(1, nodes + 2) for _ in range(random.choice((0, 1, 2, 30)))]}
    return dropped if random.random() < 0.5 else {**dropped, "summary": mutations.text(random)}


def encoded(values: list[Any]) -> bytes:
    """Return events as lines."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in values)


def _events(random: Random, base: Base) -> Content:
    events, nodes = [], 0
    for _ in range(random.choice((1, 3, 10, 40, 200))):
        made = event(random, nodes)
        nodes += "node" in made
        events.append(made)
    if random.random() < 0.3:
        events = [mutations.mutate_json(random, each) if random.random() < 0.3 else each for each in events]
    first = (
        header()
        if random.random() < 0.8
        else header(**{random.choice(("version", "name", "id", "model")): mutations.value(random)})
    )
    return first + encoded(events)


def _mutated(random: Random, base: Base) -> Content:
    """Return the lines of a real session: changed, reordered, repeated."""
    first, *rest = session_lines(base.session)
    changed = [
        json.dumps(mutations.mutate_json(random, json.loads(each))).encode() + b"\n" if random.random() < 0.4 else each
        for each in rest
    ]
    if random.random() < 0.3:
        random.shuffle(changed)
    changed = changed * random.choice((1, 1, 2, 50))
    if random.random() < 0.2:
        first = mutations.dumps(random, mutations.mutate_json(random, json.loads(first))) + b"\n"
    return first + b"".join(changed)


def _many(random: Random, base: Base) -> Content:
    """Return very many events of one kind behind a few nodes."""
    nodes = [
        {"node": {"id": n + 1, "parent": n or None, "role": ("user", "assistant")[n % 2], "content": "hi"}}
        for n in range(4)
    ]
    deep = [{"node": {"id": n + 1, "parent": n or None, "role": "user", "content": "x"}} for n in range(5_000)]
    wide = [{"node": {"id": n + 1, "parent": None, "role": "user", "content": "x"}} for n in range(5_000)]
    chosen = random.choice(
        (
            [*nodes, *({"dropped": [n % 4 + 1], "summary": "s"} for n in range(20_000))],
            [*deep, *({"dropped": [n + 1]} for n in range(5_000))],
            [*wide, *({"dropped": [n + 1], "summary": "s"} for n in range(5_000)), {"head": 5_000}],
            [*deep, *({"head": n + 1} for n in range(5_000))],
            [*wide, *({"head": n + 1} for n in range(5_000))],
            [*nodes, *({"system": "x" * (n % 90)} for n in range(20_000))],
            [*nodes, *({"title": f"t{n}"} for n in range(20_000))],
            [*nodes, *({"dropped": list(range(1, 4))} for _ in range(20_000))],
            [*nodes, {"title": "x" * 3_000_000}],
            [*nodes, *([] for _ in range(50_000))],
            [*deep, {"dropped": list(range(1, 5_000))}, {"dropped": []}],
        )
    )
    return header() + encoded(chosen)


def _damage(random: Random, base: Base) -> Content:
    return mutations.mutate_bytes(random, b"".join(session_lines(base.session)))


def _strange(random: Random, base: Base) -> Content:
    return mutations.strange_file(random, b"".join(session_lines(base.session)))
