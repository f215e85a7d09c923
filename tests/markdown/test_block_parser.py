"""Block structure compared with markdown-it, which parses whole documents."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qwchat.markdown.block_parser import BlockParser
from tests.markdown.documents import LINES
from tests.tiers import count

# Indentation of four and more is left out: after a container's end, markdown-it and the specification differ.
INDENTS = st.sampled_from(["", "", "", " ", "  ", "   ", "> ", "- ", "   > ", "1. "])
# Formulas are left out because markdown-it does not know them.
UNTABBED = LINES.filter(lambda line: "\t" not in line and not line.startswith(("    ", "\\[", "$$")))


@dataclass
class Recorder:
    """Handler that records (kind, containers, content) of every block."""

    blocks: BlockParser
    found: list[list[str]] = field(default_factory=list)

    def _add(self, kind: str, text: str) -> None:
        path = "".join("i" if container.offset else ">" for container in self.blocks.containers)
        self.found.append([kind, path, text])

    def start_paragraph(self, text: str) -> None:
        self._add("p", text.strip())

    def continue_paragraph(self, text: str) -> None:
        self.found[-1][2] += "\n" + text.strip()

    def heading(self, level: int, text: str) -> None:
        self._add(f"h{level}", text.strip())

    def setext_heading(self, level: int) -> bool:
        self.found[-1][0] = f"h{level}"
        return True

    def start_table(self, head: str, delimiters: str) -> bool:
        return False

    def table_row(self, source: str) -> None:
        raise AssertionError("there is no table")

    def open_fence(self, info: str) -> None:
        self._add(f"``` {info}", "")

    def code_line(self, text: str) -> None:
        self.found[-1][2] += text + "\n"

    def close_fence(self) -> None:
        pass

    def indented_code(self, text: str) -> None:
        self._add("code", text.strip())

    def thematic_break(self) -> None:
        self._add("hr", "")

    def blank_line(self) -> None:
        pass

    def end_leaf(self) -> None:
        pass


def ours(text: str) -> list[list[str]]:
    blocks = BlockParser()
    recorder = Recorder(blocks)
    for line in text.split("\n"):
        blocks.line(line, recorder)
    blocks.end(recorder)
    return [[kind, path, content.strip()] for kind, path, content in recorder.found]


def theirs(text: str) -> list[list[str]]:
    found: list[list[str]] = []
    path, kind = "", ""
    for token in MarkdownIt("commonmark", {"html": False}).disable("reference").parse(text):
        if token.type in ("blockquote_open", "list_item_open"):
            path += ">" if token.type == "blockquote_open" else "i"
        elif token.type in ("blockquote_close", "list_item_close"):
            path = path[:-1]
        elif token.type in ("paragraph_open", "heading_open"):
            kind = token.tag
        elif token.type == "inline":
            found.append([kind, path, "\n".join(line.strip() for line in token.content.split("\n"))])
        elif token.type == "fence":
            found.append([f"``` {token.info.strip()}", path, token.content.strip()])
        elif token.type == "code_block":
            found += [["code", path, line.strip()] for line in token.content.split("\n") if line.strip()]
        elif token.type == "hr":
            found.append(["hr", path, ""])
    return found


@settings(max_examples=count(400, 80), deadline=None)
@given(st.lists(st.tuples(INDENTS, INDENTS, UNTABBED), max_size=9))
def test_blocks_agree_with_markdown_it(lines: list[tuple[str, str, str]]) -> None:
    text = "\n".join("".join(parts) for parts in lines)
    if "    " not in text.replace("word ", ""):
        assert ours(text) == theirs(text)


def test_container_nesting_is_bounded() -> None:
    blocks = BlockParser()
    recorder = Recorder(blocks)
    blocks.line("> " * 5000 + "text", recorder)
    assert len(blocks.containers) == 24
    assert recorder.found[0][2].endswith("> text")


def test_tabs_indent_to_the_next_stop_of_four() -> None:
    assert ours("-\ta\n\n\tb\n\t\tc\n>\td\n\n\te") == [
        ["p", "i", "a"],
        ["p", "i", "b\nc"],
        ["p", ">", "d"],
        ["code", "", "e"],
    ]
