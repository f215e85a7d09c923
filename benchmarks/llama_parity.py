"""Compare our engine with llama.cpp on the same GGUF files, token by token.

    python -m benchmarks.llama_parity files --rival-python /path/to/python --work /somewhere
    python -m benchmarks.llama_parity greedy MODEL FILE.gguf --rival-python /path/to/python

`--rival-python` is a Python with llama-cpp-python, gguf and NumPy; by default this one.

`files` lets llama.cpp quantise a checkpoint (by default the built-in model) to each type, imports every file, and
evaluates replies to some questions with both engines. Of each distribution over the vocabulary it prints the mean
Kullback-Leibler divergence, in nats:

    ours       from llama.cpp to our engine, at all positions
    replies    the same, at positions that predict a token of a reply; at most 1e-3 is asked for. The built-in model
               never learnt to predict the tokens of prompts, and a model that is lost amplifies small differences
    file       from llama.cpp to float arithmetic on the weights of the file: what llama.cpp's activations cost
    weights    from float arithmetic on the file's weights to that on ours: zero for types that keep their codes
    activations  from float arithmetic on our weights to our engine: what our 8-bit activations cost

`greedy` compares the 64 most likely tokens, one after the other, of a model and of the GGUF file that was exported from
it. The exit code is 1 if a bound is exceeded or a text differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import quant
import qwchat
from quant.container import open_model
from quant.conversion import convert_source
from quant.formats import find_format
from quant.policy import conversion_spec
from quant.sources import QuantisedRows, Source, open_source
from qwchat.chat.view.table import format_table
from qwchat.model.reference import Reference
from qwchat.models_folder import embedded_checkpoint

KINDS = (
    *("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"),
    *("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"),
)
MOST_DIVERGENCE = 1e-3
REPLY_TOKENS = 64
QUESTIONS = (
    "What can you do?",
    "What is 17 + 28?",
    "How do I convert a model?",
    "What is the KV cache?",
    "Spell the word planet.",
    "How many days does March have?",
    "Who are you?",
    "Tell me about Qwen2.",
    "What is 9 times 7?",
    "How many letters r are in strawberry?",
    "What does qwchat list show?",
    "What is quantisation?",
    "Which day comes after Tuesday?",
    "How many metres are 3 kilometres?",
    "What is the difference between q4 and q8?",
    "Thank you!",
)
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Parity:
    """Divergences of one file, in nats, and the share of positions whose most likely token is the same.

    Attributes:
        kind: type that llama.cpp was asked for.
        types: number of tensors of each type in the file.
        formats: number of tensors of each of our formats.
        bits_in: bits per weight of the file's tensors.
        bits_out: bits per weight of the imported model.
        replied: mean of `ours` over the positions that predict a token of a reply.
    """

    kind: str
    types: dict[str, int]
    formats: dict[str, int]
    bits_in: float
    bits_out: float
    ours: float
    replied: float
    largest: float
    file: float
    weights: float
    activations: float
    same_token: float


class Rival:
    """llama.cpp in a process of another Python."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def _run(self, *words: object) -> str:
        command = [str(self._python), "-m", "benchmarks.llama_logits", *map(str, words)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{ran.stderr}")
        return ran.stdout

    def quantise(self, checkpoint: Path, folder: Path, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Make GGUF files; return path and tensor types by kind."""
        files: dict[str, dict[str, Any]] = json.loads(self._run("quantise", checkpoint, folder, *kinds))
        return files

    def encode(
        self, file: Path, output: Path, kind: str, importance: Mapping[str, NDArray[np.float32]] | None = None
    ) -> dict[str, Any]:
        """Quantise a bf16 GGUF file; return `seconds`, `processor_seconds` and the `types` of its tensors.

        `importance` is the mean square of each input column by the name of a matrix.
        """
        words: list[object] = ["encode", file, output, kind]
        with tempfile.TemporaryDirectory() as name:
            if importance is not None:
                path = Path(name, "importance.npz")
                np.savez(path, **importance)
                words += ["--importance", path]
            made: dict[str, Any] = json.loads(self._run(*words))
        return made

    def logits(self, file: Path, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the logits (tokens, vocabulary) of each list of ids."""
        with tempfile.TemporaryDirectory() as name:
            ids, output = Path(name, "ids.json"), Path(name, "logits.npz")
            ids.write_text(json.dumps(texts))
            self._run("logits", file, ids, output)
            with np.load(output) as arrays:
                return [arrays[f"arr_{number}"] for number in range(len(texts))]

    def greedy(self, file: Path, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Return the `count` most likely ids behind each list."""
        with tempfile.TemporaryDirectory() as name:
            ids = Path(name, "ids.json")
            ids.write_text(json.dumps(texts))
            found: list[list[int]] = json.loads(self._run("greedy", file, ids, count))
            return found


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return log-probabilities (tokens, vocabulary)."""
    centred = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(-1, keepdims=True))


def divergences(first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence from `first` to `second` at each position of all texts."""
    found = []
    for mine, other in zip(first, second, strict=True):
        p, q = log_softmax(mine), log_softmax(other)
        found.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(found)


class SourceWeights:
    """Values of the tensors of a source, read once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read: dict[str, NDArray[np.float64]] = {}

    def __call__(self, name: str) -> NDArray[np.float64]:
        """Return a tensor in float64."""
        if name not in self._read:
            rows = self._source.read(name)
            self._read[name] = (rows.dequantise() if isinstance(rows, QuantisedRows) else rows).astype(np.float64)
        return self._read[name]


class ModelWeights:
    """Values of the tensors of a converted model, read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, NDArray[np.float64]] = {}

    @cached_property
    def model(self) -> Any:
        """The opened folder."""
        return open_model(self._folder)

    def __call__(self, name: str) -> NDArray[np.float64]:
        """Return a tensor in float64."""
        if name not in self._read:
            packed = self.model.tensor(name)
            self._read[name] = find_format(packed.format).dequantise(packed).astype(np.float64)
        return self._read[name]


@dataclass(frozen=True)
class Answered:
    """A prompt and its reply as ids, and the number of ids of the prompt."""

    ids: list[int]
    prompt_tokens: int

    @property
    def predicts_reply(self) -> NDArray[np.bool_]:
        """Whether the logits of each position predict a token of the reply or its end, (tokens,) bool."""
        return np.arange(len(self.ids)) >= self.prompt_tokens - 1


def replies(model: qwchat.api.Model, questions: Sequence[str]) -> list[Answered]:
    """Return prompt and greedy reply to each question, to the end of the reply."""
    texts = []
    for question in questions:
        ids = list(model.prompt([{"role": "user", "content": question}]).ids)
        reply = greedy(model, ids, REPLY_TOKENS)
        end = next((number for number, token in enumerate(reply) if token in model.stop_ids), len(reply))
        texts.append(Answered(ids + reply[:end], len(ids)))
    return texts


def greedy(model: qwchat.api.Model, ids: Sequence[int], count: int) -> list[int]:
    """Return the `count` most likely ids behind `ids`, whatever ends a reply."""
    found: list[int] = []
    for _ in range(count):
        found.append(int(model.logits([*ids, *found])[-1].argmax()))
    return found


def formats_of(folder: Path) -> dict[str, int]:
    """Return the number of tensors of each format of a model."""
    counts: dict[str, int] = {}
    for entry in open_model(folder).manifest["tensors"].values():
        counts[entry["format"]] = counts.get(entry["format"], 0) + 1
    return counts


def compare(kind: str, made: Mapping[str, Any], work: Path, rival: Rival, answered: Sequence[Answered]) -> Parity:
    """Import one GGUF file and compare the engines on it."""
    texts = [each.ids for each in answered]
    file, folder = Path(made["path"]), work / f"{Path(made['path']).stem}-imported"
    with open_source(file) as source:
        config, preset = source.config, None if source.quantised else "dense"
        for _ in convert_source(source, folder, conversion_spec(preset, quantised=source.quantised), force=True):
            pass
        exact = Reference(config, SourceWeights(source))
        of_file = [exact.logits(ids) for ids in texts]
        bits_in = 8 * source.total_bytes / sum(int(np.prod(tensor.shape)) for tensor in source.tensors.values())
    stored = Reference(config, ModelWeights(folder))
    of_model = [stored.logits(ids) for ids in texts]
    with qwchat.load(folder, kv="f32", device="cpu", verify=False) as model:
        ours = [model.logits(ids) for ids in texts]
    theirs = [logits[:, : config.vocab_size] for logits in rival.logits(file, texts)]
    found = divergences(theirs, ours)
    same = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in zip(theirs, ours, strict=True)]
    return Parity(
        kind,
        made["types"],
        formats_of(folder),
        float(bits_in),
        open_model(folder).bits_per_weight,
        float(found.mean()),
        float(found[np.concatenate([each.predicts_reply for each in answered])].mean()),
        float(found.max()),
        float(divergences(theirs, of_file).mean()),
        float(divergences(of_file, of_model).mean()),
        float(divergences(of_model, ours).mean()),
        float(np.mean(same)),
    )


def rows(results: Sequence[Parity]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table."""
    for each in results:
        types = " ".join(f"{name}:{count}" for name, count in sorted(each.types.items()) if name != "F32")
        formats = " ".join(f"{name}:{count}" for name, count in sorted(each.formats.items()) if name != "vector")
        figures = (each.ours, each.replied, each.largest, each.file, each.weights, each.activations)
        bits = f"{each.bits_in:.2f}", f"{each.bits_out:.2f}"
        yield each.kind, types, formats, *bits, *(f"{figure:.1e}" for figure in figures), f"{each.same_token:.1%}"


def compare_files(options: argparse.Namespace) -> int:
    """Compare all types; return the exit code."""
    rival = Rival(options.rival_python)
    options.work.mkdir(parents=True, exist_ok=True)
    dense = options.work / "dense"
    if not dense.exists():
        for _ in quant.convert(options.checkpoint, dense, preset="dense"):
            pass
    with qwchat.load(dense, device="cpu", kv="f32", verify=False) as model:
        texts = replies(model, QUESTIONS)
    made = rival.quantise(options.checkpoint.resolve(), options.work.resolve(), options.kinds)
    results = []
    for kind in options.kinds:
        results.append(compare(kind, made[kind], options.work, rival, texts))
        print(f"{kind}: {results[-1].ours:.2e}", file=sys.stderr, flush=True)
    divergence = ("ours", "replies", "most", "file", "weights", "activations")
    header = ("type", "tensors", "imported", "bits", "bits here", *divergence, "same token")
    print(format_table(header, list(rows(results))))
    positions = sum(len(each.ids) for each in texts)
    exceeded = [each.kind for each in results if each.replied > MOST_DIVERGENCE]
    print(json.dumps({"positions": positions, "exceeded": exceeded, "results": [asdict(each) for each in results]}))
    return 1 if exceeded else 0


def compare_greedy(options: argparse.Namespace) -> int:
    """Compare the texts that a model and its exported file generate; return the exit code."""
    with qwchat.load(options.model, device="cpu", kv="f32", verify=False) as model:
        prompts = [list(model.prompt([{"role": "user", "content": question}]).ids) for question in QUESTIONS]
        ours = [greedy(model, ids, options.tokens) for ids in prompts]
        theirs = Rival(options.rival_python).greedy(options.file.resolve(), prompts, options.tokens)
        differing = 0
        for question, mine, other in zip(QUESTIONS, ours, theirs, strict=True):
            first = next((number for number, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), None)
            differing += first is not None
            verdict = "same" if first is None else f"differs from token {first}: {model.decode(other)!r}"
            print(f"{question} {verdict}")
    print(f"{len(prompts) - differing} of {len(prompts)} texts of {options.tokens} tokens are the same")
    return 1 if differing else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="our engine and llama.cpp on the same GGUF files")
    commands = parser.add_subparsers(dest="command", required=True)
    files = commands.add_parser("files", help="quantise with llama.cpp, import, compare logits")
    files.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    files.add_argument("--work", type=Path, default=Path("build/parity"), help="folder of the files")
    files.add_argument("--kinds", nargs="+", default=list(KINDS))
    exported = commands.add_parser("greedy", help="compare a model with the GGUF file exported from it")
    exported.add_argument("model", type=Path)
    exported.add_argument("file", type=Path)
    exported.add_argument("--tokens", type=int, default=REPLY_TOKENS)
    for command in (files, exported):
        command.add_argument("--rival-python", type=Path, default=Path(sys.executable))
    options = parser.parse_args()
    return compare_files(options) if options.command == "files" else compare_greedy(options)


if __name__ == "__main__":
    sys.exit(main())
