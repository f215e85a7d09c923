"""The header of a GGUF file: what is read, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import CheckpointError
from quant.sources.gguf import metadata as metadata_module
from quant.sources.gguf.names import gguf_name, hugging_face_name
from quant.sources.gguf.reader import GgufFile
from tests.quant.sources.gguf.files import Stored, Typed, gguf_file, pair, text
from tests.tiers import count

F32, Q4_0, Q4_K = 0, 2, 12
VALUES: dict[str, Any] = {
    "a.u8": Typed(0, 255),
    "a.i8": Typed(1, -128),
    "a.u16": Typed(2, 65535),
    "a.i16": Typed(3, -32768),
    "a.u32": Typed(4, 2**32 - 1),
    "a.i32": Typed(5, -(2**31)),
    "a.f32": Typed(6, 1e-6),
    "a.yes": True,
    "a.no": False,
    "a.text": "a\0bé\n",
    "a.empty": "",
    "a.u64": Typed(10, 2**64 - 1),
    "a.i64": Typed(11, -(2**63)),
    "a.f64": Typed(12, 0.1),
    "a.numbers": Typed(5, [1, -2, 3]),
    "a.floats": Typed(6, [0.1, -1000000.0]),
    "a.flags": [True, False],
    "a.texts": ["", "x" * 300, "é", "a\0b", "y"],
    "a.none": Typed(8, []),
}
ROWS = struct.pack("<8f", *range(8))


def write(folder: Path, data: bytes) -> Path:
    file = folder / "model.gguf"
    file.write_bytes(data)
    return file


def refusal(folder: Path, data: bytes) -> str:
    file = write(folder, data)
    with pytest.raises(CheckpointError) as caught:
        GgufFile.open(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message.replace(str(file), "FILE")


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type_are_read(tmp_path: Path, version: int) -> None:
    opened = GgufFile.open(write(tmp_path, gguf_file(VALUES, version=version)))
    expected = {key: value.value if isinstance(value, Typed) else value for key, value in VALUES.items()}
    assert dict(opened.metadata) == expected
    assert list(opened.metadata) == list(VALUES)
    assert type(opened.metadata["a.yes"]) is bool
    assert opened.metadata.count("a.texts") == 5
    assert opened.metadata.count("a.u8") is None
    assert opened.metadata.count("absent") is None
    with pytest.raises(KeyError):
        opened.metadata["absent"]


def test_tensors_are_found(tmp_path: Path) -> None:
    blocks = bytes(range(36))
    tensors = {"m": Stored(F32, (2, 4), ROWS), "q": Stored(Q4_0, (2, 32), blocks), "v": Stored(F32, (3,), b"\0" * 12)}
    opened = GgufFile.open(write(tmp_path, gguf_file({"general.alignment": 64}, tensors, alignment=64)))
    assert {name: (tensor.type.name, tensor.shape, tensor.nbytes) for name, tensor in opened.tensors.items()} == {
        "m": ("f32", (2, 4), 32),
        "q": ("q4_0", (2, 32), 36),
        "v": ("f32", (3,), 12),
    }
    assert {tensor.start % 64 for tensor in opened.tensors.values()} == {0}
    assert opened.blocks("m", 1, 2).tobytes() == ROWS[16:]
    assert opened.blocks("q", 0, 2).shape == (2, 1, 18)
    assert opened.blocks("q", 1, 2).tobytes() == blocks[18:]
    opened.release("q", 0, 2)
    assert opened.blocks("q", 0, 1).tobytes() == blocks[:18]
    opened.close()


def test_files_of_gguf_py_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_block_count(28)
    writer.add_token_list([f"token {number}" for number in range(1000)])
    writer.add_layer_norm_rms_eps(1e-6)
    matrix = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("token_embd.weight", matrix)
    writer.add_tensor("output_norm.weight", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = GgufFile.open(file)
    assert opened.metadata["general.architecture"] == "qwen2"
    assert opened.metadata["qwen2.block_count"] == 28
    assert opened.metadata["qwen2.attention.layer_norm_rms_epsilon"] == 1e-6
    assert opened.metadata["tokenizer.ggml.tokens"] == [f"token {number}" for number in range(1000)]
    assert opened.blocks("token_embd.weight", 0, 2).tobytes() == matrix.tobytes()
    assert opened.tensors["output_norm.weight"].shape == (32,)


@given(
    strings=st.lists(
        st.one_of(
            st.text(max_size=20),
            st.integers(0, 700).map("x".__mul__),
            st.just("\0" * 7),
            st.just("\x05\0\0\0\0\0\0\0xxxxx"),
        ),
        max_size=60,
    ),
    repeat=st.sampled_from([1, 1, 30]),
)
def test_arrays_of_any_strings_are_read(
    tmp_path_factory: pytest.TempPathFactory, strings: list[str], repeat: int
) -> None:
    """Lengths of 0 and above 255 and NUL characters leave the fast path, and it takes over again."""
    many = [f"t{number}" for number in range(40)] * repeat
    texts = [*many, *strings, *many, *strings]
    file = write(tmp_path_factory.mktemp("strings"), gguf_file({"a": texts, "b": 7}))
    opened = GgufFile.open(file)
    assert opened.metadata["a"] == texts
    assert opened.metadata["b"] == 7


def test_fingerprint_depends_on_header_and_weights(tmp_path: Path) -> None:
    def fingerprint(metadata: dict[str, Any], rows: bytes) -> str:
        return GgufFile.open(write(tmp_path, gguf_file(metadata, {"m": Stored(F32, (2, 4), rows)}))).fingerprint

    base = fingerprint({"a": 1}, ROWS)
    assert fingerprint({"a": 1}, ROWS) == base
    assert fingerprint({"a": 2}, ROWS) != base
    assert fingerprint({"a": 1}, ROWS[::-1]) != base


HUGE = 2**63
ONE = {"m": Stored(F32, (2, 4), ROWS)}
REFUSED = {
    "empty": (b"", "FILE cannot be memory-mapped: cannot mmap an empty file"),
    "other": (b"PK\3\4" + b"\0" * 40, r"FILE is not a GGUF file: it begins with b'PK\x03\x04', not b'GGUF'"),
    "short": (b"GGUF\3\0\0\0", "FILE has 8 bytes, too few for a GGUF file; download it again"),
    "v1": (gguf_file(version=1), "FILE is a GGUF file of version 1; versions 2 and 3 are supported"),
    "v4": (gguf_file(version=4), "FILE is a GGUF file of version 4; versions 2 and 3 are supported"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "FILE is a big-endian GGUF file, which is not supported; get the little-endian file",
    ),
    "many tensors": (
        gguf_file(counts=(HUGE, 0)),
        "FILE: the header claims 9,223,372,036,854,775,808 tensors, more than the file can hold; it is truncated or "
        "damaged, download it again",
    ),
    "many keys": (
        gguf_file(counts=(0, 1)),
        "FILE: the header claims 1 metadata keys, more than the file can hold; it is truncated or damaged, download it "
        "again",
    ),
    "long key": (
        gguf_file([("k" * 70000, 1)]),
        "FILE: a metadata key has 70,000 bytes, expected 1 to 65,535; download the file again",
    ),
    "empty key": (
        gguf_file([("", 1), ("b", 1)]),
        "FILE: a metadata key has 0 bytes, expected 1 to 65,535; download the file again",
    ),
    "key with NUL": (
        gguf_file([("a\0b", 1)]),
        r"FILE: a metadata key b'a\x00b' is not printable UTF-8 text; download the file again",
    ),
    "key that is not text": (
        gguf_file([(b"a\xff", 1)]),
        r"FILE: a metadata key b'a\xff' is not printable UTF-8 text; download the file again",
    ),
    "key twice": (gguf_file([("a", 1), ("a", 2)]), "FILE has the metadata key 'a' twice; download it again"),
    "nested array": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 40,
        "FILE: 'a' is an array of arrays, which is not supported",
    ),
    "unknown type": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IQ", 13, 1),
        "FILE: 'a' has the unknown type 13; download the file again",
    ),
    "unknown type of items": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IIQ", 9, 99, 0),
        "FILE: 'a' has the unknown type 99; download the file again",
    ),
    "long text": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IQ", 8, HUGE),
        "FILE: 'a' at byte 45 ends after the file, which has 45 bytes; it is truncated or damaged, download it again",
    ),
    "long array": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IIQ", 9, 5, HUGE),
        "FILE: 'a' at byte 49 ends after the file, which has 49 bytes; it is truncated or damaged, download it again",
    ),
    "long array of texts": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IIQ", 9, 8, 3) + text("xx") * 2 + struct.pack("<Q", 9),
        "FILE: 'a' at byte 69 ends after the file, which has 77 bytes; it is truncated or damaged, download it again",
    ),
    "many texts": (
        gguf_file(counts=(0, 1)) + text("a") + struct.pack("<IIQ", 9, 8, HUGE) + text("xx"),
        "FILE: 'a' at byte 49 ends after the file, which has 59 bytes; it is truncated or damaged, download it again",
    ),
    "alignment 0": (
        gguf_file({"general.alignment": 0}, ONE),
        "FILE: general.alignment is not a power of two up to 1,048,576; download the file again",
    ),
    "alignment 24": (
        gguf_file({"general.alignment": 24}, ONE),
        "FILE: general.alignment is not a power of two up to 1,048,576; download the file again",
    ),
    "alignment as text": (
        gguf_file({"general.alignment": "32"}, ONE),
        "FILE: general.alignment is not a power of two up to 1,048,576; download the file again",
    ),
    "tensor twice": (
        gguf_file((), [("m", ONE["m"]), ("m", ONE["m"])]),
        "FILE has tensor m twice; download it again",
    ),
    "unnamed": (
        gguf_file((), {"": ONE["m"]}),
        "FILE: a tensor name has 0 bytes, expected 1 to 63; download the file again",
    ),
    "no dimensions": (
        gguf_file((), {"m": Stored(F32, (), ROWS)}),
        "FILE: tensor 'm' has 0 dimensions, expected 1 to 4; download the file again",
    ),
    "5 dimensions": (
        gguf_file((), {"m": Stored(F32, (1, 1, 1, 2, 4), ROWS)}),
        "FILE: tensor 'm' has 5 dimensions, expected 1 to 4; download the file again",
    ),
    "size 0": (
        gguf_file((), {"m": Stored(F32, (0, 4), ROWS)}),
        "FILE: tensor 'm' has the shape 0 x 4; download the file again",
    ),
    "size 2^64 - 1": (
        gguf_file((), {"m": Stored(F32, (2**64 - 1, 2**64 - 1), ROWS)}),
        f"FILE: tensor 'm' has the shape {2**64 - 1:,} x {2**64 - 1:,}; download the file again",
    ),
    "unsupported": (
        gguf_file((), {"m": Stored(16, (1, 256), b"\0" * 66)}),
        "FILE: tensor 'm' has the type IQ2_XXS (16); supported are f32, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, "
        "q4_k, q5_k, q6_k, iq4_nl, iq4_xs and bf16",
    ),
    "half a block": (
        gguf_file((), {"m": Stored(Q4_K, (2, 896), b"\0" * 1008)}),
        "FILE: tensor 'm' has rows of 896 weights, not a multiple of the 256 weights of a q4_k block; "
        "download the file again",
    ),
    "misaligned": (
        gguf_file((), {"m": Stored(F32, (2, 4), ROWS, 4)}),
        "FILE: tensor 'm' begins at offset 4, not a multiple of the alignment 32; download the file again",
    ),
    "outside": (
        gguf_file((), {"m": Stored(F32, (2, 4), ROWS, 1 << 40)}),
        "FILE: tensor 'm' ends at byte 1,099,511,627,904, but the file has 128; it is truncated, download it again",
    ),
    "truncated": (
        gguf_file((), ONE)[:-1],
        "FILE: tensor 'm' ends at byte 128, but the file has 127; it is truncated, download it again",
    ),
    "overlapping": (
        gguf_file((), {"m": Stored(F32, (4, 4), ROWS * 2), "n": Stored(F32, (2, 4), ROWS, 32)}),
        "FILE: tensors 'm' and 'n' overlap; download the file again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    data, message = REFUSED[case]
    assert refusal(tmp_path, data) == message


@pytest.mark.parametrize("cut", range(0, len(gguf_file(VALUES, ONE)), 7))
def test_cut_headers_are_refused(tmp_path: Path, cut: int) -> None:
    refusal(tmp_path, gguf_file(VALUES, ONE)[:cut])


def test_values_that_are_wrong_are_refused_when_they_are_used(tmp_path: Path) -> None:
    pairs = [("a", b"\xff"), ("b", [b"good", b"\xc3"]), ("c", Typed(0, 2)), ("d", 1)]
    data = gguf_file(pairs).replace(pair("c", Typed(0, 2)), text("c") + struct.pack("<IB", 7, 2))
    file = write(tmp_path, data)
    opened = GgufFile.open(file)
    for key, message in {
        "a": f"{file}: 'a' is not UTF-8 text (invalid start byte); download the file again",
        "b": f"{file}: item 1 of 'b' is not UTF-8 text (unexpected end of data); download the file again",
        "c": f"{file}: 'c' is not true or false; download the file again",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            opened.metadata[key]
        assert str(caught.value) == message
    assert opened.metadata["d"] == 1


def test_headers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_module, "MAX_HEADER_BYTES", 100)
    assert refusal(tmp_path, gguf_file({"a": "x" * 200, "b": 1}, ONE)) == (
        "FILE: 'a' at byte 45 ends after the file, which has 352 bytes; headers are at most 100 bytes; "
        "it is truncated or damaged, download it again"
    )


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a regular file"):
        GgufFile.open(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        GgufFile.open(tmp_path / "absent.gguf")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_names_are_those_of_gguf_py(architecture: str) -> None:
    from quant.families import expected_tensors, parse_config
    from tests.quant.checkpoints import CONFIG

    config = parse_config({**CONFIG, "model_type": architecture, "head_dim": 16, "num_hidden_layers": 12})
    kind = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[architecture]
    table = gguf.get_tensor_name_map(kind, config.num_layers)
    for name in expected_tensors(config):
        assert gguf_name(name) == table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert hugging_face_name(gguf_name(name) or "") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "blk.0.attn_q",
        "blk.00.attn_q.weight",
        "blk..attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.².attn_q.weight",
        "rope_freqs.weight",
        "output.scale",
    ],
)
def test_other_names_are_not_translated(name: str) -> None:
    assert hugging_face_name(name) is None


def test_published_vocabulary_is_read(shared_qwen2: Path, tmp_path: Path) -> None:
    tokens = list(json.loads((shared_qwen2 / "7b-instruct" / "vocab.json").read_text()))[:: count(1, 3)]
    merges = (shared_qwen2 / "7b-instruct" / "merges.txt").read_text().splitlines()[1 :: count(1, 3)]
    opened = GgufFile.open(write(tmp_path, gguf_file({"tokens": tokens, "merges": merges}, ONE)))
    assert opened.metadata["tokens"] == tokens
    assert opened.metadata["merges"] == merges
    assert opened.blocks("m", 0, 2).tobytes() == ROWS
