"""Which files of a repository a pull takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qwchat.errors import HubError, ModelError, UsageError
from qwchat.store.hub_files import choose_files

SUM = "0" * 64
CHECKPOINT = {"config.json": 600, "tokenizer.json": 7_000_000, "model.safetensors": 900_000_000, "README.md": 9_000}
GGUF = {
    "README.md": 9_000,
    "config.json": 600,
    "tiny-Q4_0.gguf": 4_000_000,
    "tiny-Q4_K_M.gguf": 5_000_000,
    "Q8_0/tiny-Q8_0-00001-of-00002.gguf": 6_000_000,
    "Q8_0/tiny-Q8_0-00002-of-00002.gguf": 3_000_000,
}


def siblings(sizes: dict[str, Any], checksum: str | None = SUM) -> list[Any]:
    """Return files as the hub's client lists them."""
    return [
        SimpleNamespace(
            rfilename=name, size=size, lfs=SimpleNamespace(sha256=checksum) if name.endswith(("gguf", "s")) else None
        )
        for name, size in sizes.items()
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*q4_k_m*.gguf", ["tiny-Q4_K_M.gguf"]),
        ("tiny-Q4_0.gguf", ["tiny-Q4_0.gguf"]),
        ("*Q8_0*", ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf"]),
        ("q8_0/*", ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf"]),
        ("*-00002-of-*", ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_a_pattern_chooses_one_model(pattern: str, expected: list[str]) -> None:
    files = choose_files("Qwen/Tiny-GGUF", siblings(GGUF), pattern)
    assert list(files) == expected
    assert [file.local_name for file in files.values()] == [name.rpartition("/")[2] for name in expected]
    assert all(file.is_weights and file.sha256 == SUM for file in files.values())


def test_a_name_with_the_signs_of_a_pattern_means_itself() -> None:
    names = {"a[b].gguf": 1, "ab.gguf": 1}
    assert list(choose_files("Qwen/Tiny", siblings(names), "a[b].gguf")) == ["a[b].gguf"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "*q4*",
            "'*q4*' matches 2 models of Qwen/Tiny-GGUF: tiny-Q4_0.gguf (4.0 MB), tiny-Q4_K_M.gguf (5.0 MB); "
            "give a longer pattern",
        ),
        (
            "*q5*",
            "'*q5*' matches no GGUF file of Qwen/Tiny-GGUF, which has Q8_0/tiny-Q8_0-00001-of-00002.gguf (2 parts, "
            "9.0 MB), tiny-Q4_0.gguf (4.0 MB), tiny-Q4_K_M.gguf (5.0 MB): give another pattern",
        ),
    ],
)
def test_a_pattern_must_match_one_model(pattern: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_files("Qwen/Tiny-GGUF", siblings(GGUF), pattern)
    assert str(caught.value) == message


def test_a_repository_of_gguf_files_says_what_to_choose() -> None:
    with pytest.raises(ModelError) as caught:
        choose_files("Qwen/Tiny-GGUF", siblings(GGUF), None)
    assert str(caught.value) == (
        "Qwen/Tiny-GGUF has GGUF files and no checkpoint: Q8_0/tiny-Q8_0-00001-of-00002.gguf (2 parts, 9.0 MB), "
        "tiny-Q4_0.gguf (4.0 MB), tiny-Q4_K_M.gguf (5.0 MB); choose one with qwchat pull Qwen/Tiny-GGUF "
        "file='tiny-Q4_K_M.gguf'"
    )


def test_a_checkpoint_beside_gguf_files_is_pulled_without_a_pattern() -> None:
    listed = siblings(CHECKPOINT | {"model.gguf": 5, "folder/model.safetensors": 5})
    assert list(choose_files("Qwen/Tiny", listed, None)) == ["config.json", "tokenizer.json", "model.safetensors"]
    assert list(choose_files("Qwen/Tiny", listed, "*.gguf")) == ["model.gguf"]
    with pytest.raises(UsageError, match="Qwen/Tiny has no GGUF file: pull it without a pattern"):
        choose_files("Qwen/Tiny", siblings(CHECKPOINT), "*.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "../up.gguf",
        "/etc/x.gguf",
        "a/../b.gguf",
        ".x.gguf",
        "a//b.gguf",
        "a\\b.gguf",
        "a\nb.gguf",
        f"{'é' * 200}.gguf",
    ],
)
def test_unsafe_names_are_no_models(name: str) -> None:
    with pytest.raises(UsageError, match="Qwen/Tiny has no GGUF file"):
        choose_files("Qwen/Tiny", siblings({name: 5, f"{'x' * 260}.gguf": 5}), "*")


def test_a_model_without_one_of_its_parts_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Qwen/Tiny does not have x-00001-of-00002.gguf, a part of the model"):
        choose_files("Qwen/Tiny", siblings({"x-00002-of-00002.gguf": 5}), "x*")


def test_sizes_and_checksums_must_be_stated() -> None:
    for listed in (siblings({"x.gguf": None}), siblings({"x.gguf": -1}), siblings({"x.gguf": 5}, "abc")):
        with pytest.raises(HubError, match=r"Qwen/Tiny: the hub states no usable size or checksum of x.gguf"):
            choose_files("Qwen/Tiny", listed, "x*")
