"""Mentions of files in typed messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.chat.mentions import compose, escape_mentions, suggestions, unquote
from qwchat.errors import UsageError
from tests.clocks import cost_growth


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b.py", "two words.txt", "it's.txt", "src/app.py", "src/deep/util.py", ".hidden", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(f"{name} {number}" for number in range(1, 6)) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "text", "titles"),
    [
        ("@a.py", "a.py", ["a.py"]),
        ("What does @a.py do?", "What does a.py do?", ["a.py"]),
        ("See @a.py, @b.py.", "See a.py, b.py.", ["a.py", "b.py"]),
        ("@a.py,@b.py;@README!", "a.py,b.py;README!", ["a.py", "b.py", "README"]),
        ('(@a.py) "@b.py" [@README]', '(a.py) "b.py" [README]', ["a.py", "b.py", "README"]),
        ("@a.py:2-3: why?", "a.py:2-3: why?", ["a.py:2-3"]),
        ("@a.py: why?", "a.py: why?", ["a.py"]),
        (
            "@\"two words.txt\" and @'two words.txt':2",
            "two words.txt and two words.txt:2",
            ["two words.txt", "two words.txt:2"],
        ),
        ("@two\\ words.txt:1-2 .", "two words.txt:1-2 .", ["two words.txt:1-2"]),
        ("@it's.txt here", "it's.txt here", ["it's.txt"]),
        ("@*.py all", "*.py all", ["a.py", "b.py"]),
        ("@**/*.py:1", "**/*.py:1", ["a.py:1", "b.py:1", "src/app.py:1", "src/deep/util.py:1"]),
        ("@a.py and @a.py again", "a.py and a.py again", ["a.py"]),
        ("@a.py:1 @a.py:2", "a.py:1 a.py:2", ["a.py:1", "a.py:2"]),
        ('@"it\'s.txt":2 here', "it's.txt:2 here", ["it's.txt:2"]),
        ("（@a.py），@b.py。", "（a.py），b.py。", ["a.py", "b.py"]),
        ("line one\n@a.py\nline three", "line one\na.py\nline three", ["a.py"]),
    ],
)
def test_mentions_become_files(typed: str, text: str, titles: list[str]) -> None:
    composed = compose(typed)
    assert composed.text == text
    assert [attachment.title for attachment in composed.attachments] == titles
    assert composed.notices == ()


@pytest.mark.parametrize(
    "typed",
    [
        "write to me@a.py please",
        "me@example.org and @someone and @ alone",
        "@property\ndef f(self): ...",
        "`@a.py` is how it is written",
        f"{'`' * 2}look: `@a.py` {'`' * 2}",
        "```\n@a.py\n```",
        "~~~\n@a.py",
        "   ````py\n```\n@a.py\n````  ",
        "@@ -1,3 +1,4 @@",
        "a@@a.py",
        "@@alice",
        "3 @ 2 € = 6 €",
        "@",
    ],
)
def test_what_stays_text(typed: str) -> None:
    composed = compose(typed)
    assert (composed.text, composed.attachments, composed.notices) == (typed, (), ())


def test_a_doubled_sign_escapes_a_mention() -> None:
    composed = compose("say @@a.py and @@src but @b.py")
    assert composed.text == "say @a.py and @src but b.py"
    assert [attachment.title for attachment in composed.attachments] == ["b.py"]


def test_escaped_text_is_restored_whatever_it_names(here: Path) -> None:
    for number in range(120):
        (here / f"{number}.txt").write_text("x")
    for text in ("see @a.py and @*.txt, @a.py:3-1", "@@a.py @alice me@a.py", "`@a.py` @src/"):
        composed = compose(escape_mentions(text))
        assert (composed.text, composed.attachments, composed.notices) == (text, (), ())
    with pytest.raises(UsageError, match="matches more than 100 files: use a narrower pattern"):
        compose("@*.txt")


@pytest.mark.parametrize(
    ("unit", "count"),
    [(f" `a {'`' * 2}b ```c", 20_000), ("`", 100_000), ("@a", 50_000), ("```\n", 30_000), ("@x.y ", 5_000)],
)
def test_search_time_grows_linearly_with_the_text(unit: str, count: int) -> None:
    assert cost_growth(lambda size: compose(unit * size), count // 8, 8) < 24  # Quadratic growth would be 64.


def test_a_mention_that_looks_like_a_path_but_matches_no_file_gets_a_notice() -> None:
    composed = compose("see @src/ap.py, @*.rs and @x.py:3-4!")
    assert composed.text == "see @src/ap.py, @*.rs and @x.py:3-4!"
    assert composed.notices == (
        "@src/ap.py matches no file and is sent as text",
        "@*.rs matches no file and is sent as text",
        "@x.py:3-4 matches no file and is sent as text",
    )


def test_many_unknown_mentions_take_few_lines() -> None:
    notices = compose(" ".join(f"@{number}.py @0.py" for number in range(9))).notices
    assert notices[4:] == ("@4.py matches no file and is sent as text", "… and 4 more")


def test_an_edited_message_attaches_no_file_twice() -> None:
    sent = compose("what does @a.py do?").text_with_files()
    again = compose(sent)
    assert (again.text, again.attachments) == (sent, ())


def test_text_of_a_file_is_not_searched(here: Path) -> None:
    (here / "trap.md").write_text("read @a.py\n```\n@b.py\n````\n@README\n")
    sent = compose("@trap.md").text_with_files()
    assert compose(sent).attachments == ()


def test_folders_and_programs_are_refused(here: Path) -> None:
    (here / "prog").write_bytes(b"\x7fELF\0")
    with pytest.raises(UsageError, match=r"^src is a folder: name its files, for example src/\*\.md$"):
        compose("look into @src please")
    with pytest.raises(UsageError, match=r"^prog is a binary file"):
        compose("what is @prog?")
    with pytest.raises(UsageError, match=r"^a\.py has only 5 lines: line 9 does not exist$"):
        compose("@a.py:9")


def offered(text: str) -> list[str]:
    results = []
    for suggestion in suggestions(text):
        results.append(text[: len(text) - suggestion.replaced] + suggestion.text)
    return results


def test_suggested_mentions_are_understood(here: Path) -> None:
    names = ("Bob's notes.md", 'quo"ted one.md', "mix' and \".md", "ats @ sign.md", "back\\slash.md")
    for name in names:
        (here / name).write_text("x")
        (offer,) = offered(f"@{name[:3]}")
        assert [attachment.name for attachment in compose(offer).attachments] == [name]
        assert unquote(offer.removeprefix("@")) == name


def test_a_command_accepts_file_names_written_as_mentions(here: Path) -> None:
    (here / "@types").write_text("x\n")
    for typed in ("a.py:2", "@a.py:2", "'a.py':2", '@"a.py":2'):
        assert unquote(typed) == "a.py:2"
    for typed in ("two words.txt", "two\\ words.txt", "@two\\ words.txt", '"two words.txt"'):
        assert unquote(typed) == "two words.txt"
    assert unquote("@types") == "@types"


def test_numbers_of_any_length_are_handled() -> None:
    typed = f"@a.py:{'9' * 5000}"
    assert compose(typed).text == typed


def test_completion_of_mentions(here: Path) -> None:
    everything = ["@README", "@a.py", "@b.py", '@"it\'s.txt"', "@src/", '@"two words.txt"']
    assert offered("see @") == [f"see {name}" for name in everything]
    assert offered("see @s") == ["see @src/", 'see @"it\'s.txt"', 'see @"two words.txt"']
    assert offered("@src/") == ["@src/app.py", "@src/deep/"]
    assert offered('@"two') == ['@"two words.txt"']
    assert offered("@two\\ w") == ['@"two words.txt"']
    assert offered("@.h") == ["@.hidden"]
    assert offered("(@READ") == ["(@README"]
    assert offered("@util") == ["@src/deep/util.py"]
    assert offered("@srcutil") == ["@src/deep/util.py"]
    assert offered("me@") == []
    assert offered("@a.py and") == []
    assert offered("@nowhere/") == []
