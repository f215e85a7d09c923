"""Files attached to a message: names, contents and form."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from qwchat.chat import attachments, file_names
from qwchat.chat.attachments import Attachment, compose_message, decode_text, file_lines, files_total, load_files
from qwchat.chat.file_names import LineRange, expand_pattern, find_files, safe_name
from qwchat.errors import UsageError
from tests.tiers import count


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(**contents: str) -> None:
    for name, text in contents.items():
        Path(name).write_text(text)


def tree(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"text of {name}\n")


def one(name: str) -> Attachment:
    [attachment] = load_files(name).attachments
    return attachment


def test_a_file_appears_in_a_message_with_its_name_in_a_fence(here: Path) -> None:
    (here / "app.py").write_bytes(b"import os\r\n\r\nprint(os.name)\r\n\r\n")
    assert one("app.py").block() == "File app.py:\n\n```py\nimport os\n\nprint(os.name)\n```"
    assert one(f"{here}/app.py").name == f"{here}/app.py"


@pytest.mark.parametrize(
    ("name", "info"),
    [("Makefile", ""), ("a.PY", "py"), ("a.c++", "c++"), ("a.tar.gz", "gz"), ("a.b c", ""), (".x", "")],
)
def test_the_fence_names_the_language_by_the_suffix(name: str, info: str) -> None:
    assert Attachment(name, "x").block() == f"File {name}:\n\n```{info}\nx\n```"


@given(st.text(alphabet="`a\n", max_size=60))
@examples(max_examples=count(100, 20))
def test_no_text_ends_its_own_fence(text: str) -> None:
    block = Attachment("a.md", text or "x").block()
    fence = re.findall("`+", block.split("\n\n", 1)[1])[0]
    assert fence not in text
    assert block.endswith("\n" + fence)


def test_an_empty_file_says_so() -> None:
    files(a="\n\n")
    assert one("a").block() == "File a: empty"


@pytest.mark.parametrize(
    ("wanted", "text", "header", "title"),
    [
        ("2-3", "b\nc", "lines 2-3", "a:2-3"),
        ("2", "b", "line 2", "a:2"),
        ("4-", "d\ne", "lines 4-5", "a:4-5"),
        ("-2", "a\nb", "lines 1-2", "a:1-2"),
        ("4-99", "d\ne", "lines 4-5", "a:4-5"),
        ("5-5", "e", "line 5", "a:5"),
    ],
)
@pytest.mark.parametrize("most_bytes", [8 << 20, 8])
def test_ranges_of_lines(
    wanted: str, text: str, header: str, title: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "MAX_FILE_BYTES", most_bytes)  # With 8, the file of 10 bytes is read line by line.
    files(a="a\nb\nc\nd\ne\n")
    attachment = one(f"a:{wanted}")
    assert attachment.text == text
    assert attachment.block() == f"File a, {header}:\n\n```\n{text}\n```"
    assert attachment.title == title


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a:7", "a has only 2 lines: line 7 does not exist"),
        ("a:2-1", "a:2-1 is not a valid line range: use FIRST-LAST, counted from 1"),
        ("a:0", "a:0 is not a valid line range: use FIRST-LAST, counted from 1"),
        ("b", "cannot read b: No such file or directory"),
        ("b:3", "cannot read b:3: No such file or directory"),
        ("*.py", "no file matches *.py"),
        ("folder", "folder is a folder: name its files, for example folder/*.md"),
        ("folder/", "folder/ is a folder: name its files, for example folder/*.md"),
        ("/dev/null", "/dev/null is not a regular file"),
        ("pipe", "pipe is not a regular file"),
        ("x" * 300, f"cannot read {'x' * 300}: No such file or directory"),
        ("nul\0", "cannot read nul␀: No such file or directory"),
        ("bad\udcff\x1b[31m", "cannot read bad\ufffd␛[31m: No such file or directory"),
    ],
)
def test_what_cannot_be_attached(name: str, complaint: str) -> None:
    files(a="1\n2\n")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(UsageError) as caught:
        load_files(name)
    assert str(caught.value) == complaint


def test_a_file_without_read_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    files(a="x")

    def refuse(*unused: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"^cannot read a: Permission denied$"):
        load_files("a")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        ("\ufeffmarked é".encode(), "marked é"),
        ("Grüße 😀".encode("utf-16"), "Grüße 😀"),
        (b"\xfe\xff" + "big".encode("utf-16-be"), "big"),
        ("wide".encode("utf-32"), "wide"),
        (b"", ""),
    ],
)
def test_supported_encodings(data: bytes, text: str) -> None:
    assert decode_text(data, "a") == text


NUL = "a is a binary file (contains NUL bytes)"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x7fELF\0\0", NUL),
        (b"\x89PNG\0", NUL),
        ("no mark".encode("utf-16-le"), NUL),
        (b"\xff\xfea\0\0\0", NUL),
        (b"caf\xe9", "a is not UTF-8 text (byte 4 is 0xe9): convert it, for example with iconv"),
        (b"\xff\xfea", "a is not UTF-16 text (byte 3 is 0x61): convert it, for example with iconv"),
    ],
)
def test_what_is_not_text(data: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        decode_text(data, "a")
    assert str(caught.value) == complaint


def test_big_files_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_FILE_BYTES", 1 << 20)
    files(log="a line of text\n" * 100_000)
    with pytest.raises(UsageError) as caught:
        load_files("log")
    assert str(caught.value) == ("log is larger than 1 MiB: select lines, for example log:1-100")
    assert one("log:99999-").text == "a line of text\na line of text"
    with pytest.raises(UsageError, match=r"^log:1- is larger than 1 MiB: select fewer"):
        load_files("log:1-")
    with pytest.raises(UsageError, match=r"^log has only 100,000 lines: line 100,001 does not exist$"):
        load_files("log:100001")


def test_pipes_are_read_only_on_request() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a process\n")
    os.close(writing)
    [attachment] = load_files(f"/dev/fd/{reading}", pipes=True).attachments
    os.close(reading)
    assert attachment.text == "from a process"


def test_patterns_find_files_and_nothing_hidden() -> None:
    tree("a.py", "b.txt", ".secret.py", "src/c.py", "src/deep/d.py", ".git/e.py", "src/.f.py", "src/deep/x.md")
    Path("src/loop").symlink_to(".")
    Path("src/folder.py").mkdir()
    assert expand_pattern("*.py") == ["a.py"]
    assert expand_pattern("**/*.py") == ["a.py", "src/c.py", "src/deep/d.py"]
    assert expand_pattern("src/**") == ["src/c.py", "src/deep/d.py", "src/deep/x.md"]
    assert expand_pattern("src/*/?.py") == ["src/deep/d.py", "src/loop/c.py"]
    assert expand_pattern("s*/[cd].py") == ["src/c.py"]
    assert expand_pattern(".*.py") == [".secret.py"]
    assert expand_pattern("src/**/deep/*.md") == ["src/deep/x.md"]
    assert expand_pattern(f"{Path.cwd()}/*.txt") == [f"{Path.cwd()}/b.txt"]


def test_patterns_do_not_leave_the_folder_that_they_begin_in(here: Path) -> None:
    tree("project/src/a.py", "project/lib/b.py", "project/lib/deep/c.py", "secret/key.py", "secret/deep/key.py")
    for name, target in {
        "src/key.py": "../../secret/key.py",  # A link to a file outside.
        "src/absolute.py": f"{here}/secret/key.py",
        "src/twice.py": "key.py",  # Through another link.
        "src/out": "../../secret",
        "src/up": "..",
        "src/ring": "ring",
        "src/gone.py": "nowhere",
        "src/zeros.py": "/dev/zero",
        "src/inside.py": "../lib/b.py",
        "linked": "../secret",
    }.items():
        (here / "project" / name).symlink_to(target)
    os.mkfifo("project/src/pipe.py")
    os.chdir("project")
    for pattern, found in {
        "src/*.py": ["src/a.py"],
        "src/**": ["src/a.py"],
        "src/*/key.py": [],
        "src/*/deep/*.py": [],
        "**/*.py": ["lib/b.py", "lib/deep/c.py", "src/a.py", "src/inside.py"],
        "*/*.py": ["lib/b.py", "src/a.py", "src/inside.py"],
        "*/up/lib/*.py": ["src/up/lib/b.py"],
        "*/../../secret/key.py": [],
        "*/../lib/b.py": ["lib/../lib/b.py", "src/../lib/b.py"],
        "l*/../secret/key.py": [],
        "*/out/key.py": [],
        "**/out/*": [],
        "../s*/key.py": ["../secret/key.py"],  # The part before the wildcard sets the folder to stay in.
        "linked/*.py": ["linked/key.py"],
        f"{here}/project/s*/key.py": [],
    }.items():
        assert expand_pattern(pattern) == found, pattern
        assert [attachment.name for attachment in (load_files(pattern).attachments if found else ())] == found
    assert one("src/key.py").text == "text of secret/key.py", "a link that is named itself is followed"


def test_links_in_rings_are_searched_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        tree(f"d{number}/f.md")
        for other in range(5):
            Path(f"d{number}/to{other}").symlink_to(f"../d{other}")
    monkeypatch.setattr(file_names, "MAX_ENTRIES", 200)
    assert expand_pattern("**/*.md") == [f"d{number}/f.md" for number in range(5)]
    assert expand_pattern("**/**/**/*.md") == [f"d{number}/f.md" for number in range(5)]


def test_opening_a_file_that_becomes_a_pipe_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    files(a="x")
    found = find_files("a")
    assert found is not None
    os.replace("pipe", "a")  # noqa: PTH105  # After its name was looked up.
    with pytest.raises(UsageError, match=r"^a is not a regular file$"):
        attachments.load_matches(found)


def test_patterns_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    tree("home/n.md")
    assert expand_pattern("~/*.md") == ["~/n.md"]
    assert one("~/n.md").text == "text of home/n.md"
    assert one("~/*.md").name == "~/n.md"


def test_patterns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tree(*(f"f{number}.md" for number in range(6)))
    monkeypatch.setattr(file_names, "MAX_MATCHES", 5)
    with pytest.raises(UsageError, match=r"^\*\.md matches more than 5 files: use a narrower pattern$"):
        load_files("*.md")
    monkeypatch.setattr(file_names, "MAX_ENTRIES", 5)
    with pytest.raises(UsageError, match=r"^\*\*/x searches more than 5 files and folders: use a narrower pattern$"):
        load_files("**/x")


def test_a_pattern_skips_binary_files() -> None:
    tree("a.md", "c.md")
    Path("b.md").write_bytes(b"\0\0")
    found = load_files("*.md:1-2")
    assert [attachment.title for attachment in found.attachments] == ["a.md:1", "c.md:1"]
    assert found.notices == ("skipped: b.md is a binary file (contains NUL bytes)",)
    for number in range(10):
        Path(f"d{number}.md").write_bytes(b"\0")
    assert len(load_files("*.md").notices) == 6
    assert load_files("*.md").notices[-1] == "skipped: 6 more files"
    with pytest.raises(UsageError, match=r"^b\.md is a binary file"):
        load_files("b.m?")


def test_an_exact_name_takes_precedence_over_ranges_and_patterns() -> None:
    files(a="1\n2\n")
    Path("a:1").write_text("odd")
    Path("[x].md").write_text("brackets")
    Path("x.md").write_text("plain")
    assert one("a:1").text == "odd"
    assert one("a:2").text == "2"
    assert one("[x].md").text == "brackets"
    assert one("[x].md:1").text == "brackets"
    assert find_files("nothing") is None


def test_names_are_made_safe() -> None:
    assert safe_name("a\nb\x1b]0;t\x07\t\udce9") == "a␊b␛]0;t␇␉\ufffd"


def test_totals_before_sending() -> None:
    counted = [(Attachment(f"f{number}.md", "x", LineRange(1, 2) if number == 1 else None), 10) for number in range(14)]
    assert file_lines(counted[:1]) == []
    assert files_total(counted[:1]) == "f0.md, 10 tokens"
    assert file_lines(counted[:2]) == ["f0.md: 10 tokens", "f1.md:1-2: 10 tokens"]
    assert files_total(counted[:2]) == "2 files, 20 tokens"
    assert file_lines(counted)[-2:] == ["f11.md: 10 tokens", "… and 2 more: 20 tokens"]
    assert files_total([(counted[0][0], 1)]) == "f0.md, 1 token"


def test_files_come_before_the_text() -> None:
    assert compose_message([Attachment("a", "x")], "Why?") == "File a:\n\n```\nx\n```\n\nWhy?"
    assert compose_message([], "Why?") == "Why?"
