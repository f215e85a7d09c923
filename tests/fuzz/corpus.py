"""Known attacks by name, which every run of the fuzzer includes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.fuzz.base import QUESTION, SESSION, Base, manifest_with, parsed, session_lines
from tests.fuzz.case import BROKEN_PIPE, MODEL, OK, RUNTIME, USAGE, Case, Command, Files, Link, Sparse, command
from tests.fuzz.surfaces import checkpoints, sessions, settings, tokenizers

Make = Callable[[Base], Case]
CASES: dict[str, Make] = {}

_GENERATION = "generation_config.json"
_FAMILY = ("-p", "hi", "-m", "{case}/model", *QUESTION, "--json")
_SPLIT_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _case(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES[name] = make
        return make

    return add


def _made(base: Base, name: str, files: Files, *commands: Command, **more: Any) -> Case:
    """Return a case with an intact model and an intact session, over which `files` are written."""
    copies = (("model", base.model), ("source", base.checkpoint), (f"sessions/{SESSION}", base.session))
    return Case("corpus", 0, name, files, commands, copies=copies, **more)


def _model(base: Base, name: str, changed: Mapping[str, bytes], codes: tuple[int, ...] = (MODEL,)) -> Case:
    """Return a case of a model with other small files, whose checksums are correct in its manifest."""
    files: Files = {f"model/{each}": data for each, data in changed.items()}
    files["model/manifest.json"] = manifest_with(parsed(base.model, "manifest.json"), dict(changed))
    return _made(base, name, files, command(*_FAMILY, codes=codes, json=True))


def _tokenizer(name: str, change: Callable[[dict[str, Any]], object], codes: tuple[int, ...] = (MODEL,)) -> None:
    def make(base: Base) -> Case:
        values = parsed(base.model, tokenizers.FILE)
        change(values)
        return _model(base, name, {tokenizers.FILE: json.dumps(values).encode()}, codes)

    CASES[name] = make


def _normalised(*parts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(normalizer={"type": "Sequence", "normalizers": list(parts)})


def _split(pattern: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    part = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return lambda values: values.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [part, _SPLIT_BYTES]})


_GROWS = {"type": "Replace", "pattern": {"String": "i"}, "content": "i" * 8}
_tokenizer("tokenizer-replace-grows", _normalised(*[_GROWS] * 12))
_tokenizer(
    "tokenizer-replace-nothing", _normalised({"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 9_999})
)
_tokenizer("tokenizer-precompiled", _normalised({"type": "Precompiled", "precompiled_charsmap": "/////w=="}))
_tokenizer("tokenizer-pattern-explodes", _split({"Regex": "((a|i|h)*)*b"}))
_tokenizer("tokenizer-pattern-of-others", _split({"Regex": r"\s+"}))
_tokenizer("tokenizer-panics", lambda values: values.update(pre_tokenizer={"type": "FixedLength", "length": 0}))
_tokenizer("tokenizer-decoder-grows", lambda values: values.update(decoder={"type": "Sequence", "decoders": [_GROWS]}))
_tokenizer("tokenizer-id-past-the-vocabulary", lambda values: values["model"]["vocab"].update({"hi": 1 << 23}))
_tokenizer("tokenizer-control-past-the-vocabulary", lambda values: values["added_tokens"][1].update(id=1 << 20))


def _template(name: str, source: str, codes: tuple[int, ...] = (MODEL,)) -> None:
    def make(base: Base) -> Case:
        values = {**parsed(base.model, "tokenizer_config.json"), "chat_template": source}
        return _model(base, name, {"tokenizer_config.json": json.dumps(values).encode()}, codes)

    CASES[name] = make


_GROW = (
    "{%% macro f() %%}{%% set ns.x = %s %%}{%% endmacro %%}{%% set ns = namespace(x=[1], y=[1], z=0) %%}"
    "{%% for i in range(40) %%}{{ %s }}{%% endfor %%}{%% set ns.y = ns.x %%}{%% set ns.x = [1] %%}"
    "{%% for i in range(40) %%}{{ %s }}{%% endfor %%}{{ ns.x == ns.y }}"
)
_template("template-varargs", _GROW % ("varargs", *["f(ns.x, ns.x)"] * 2))
_template("template-kwargs", _GROW % ("kwargs", *["f(a=ns.x, b=ns.x)"] * 2))
_template(
    "template-caller", "{% macro f() %}{{ caller(*varargs) }}{% endmacro %}{% call(x) f(*range(99)) %}{% endcall %}"
)
_template("template-reaches-for-python", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
_template(
    "template-of-control-characters", "{{ '\\x1b]0;title\\x07\\u202e' }}{{ raise_exception('\\x1b[31m\\u202e') }}"
)


def _toml(name: str, text: str) -> None:
    def make(base: Base) -> Case:
        ways = (command("config", "show", codes=(OK, USAGE)), command("config", "set", "temp", "1", codes=(OK, USAGE)))
        asked = command(*_FAMILY, "--as", "some", codes=(USAGE,))
        files: Files = dict.fromkeys((settings.USER, settings.PROJECT, settings.PERSONA), text.encode())
        return _made(base, name, files, *ways, asked)

    CASES[name] = make


_toml("toml-one-long-key", ".".join(["a"] * 20_000) + " = 1\n")
_toml("toml-many-long-keys", "\n".join(f"{'a.' * 45}k{number} = 1" for number in range(400)))
_toml("toml-long-tables", "\n".join(f"[{'a.' * 45}k{number}]" for number in range(400)))
_toml("toml-deep-lists", "a = " + "[" * 15_000 + "]" * 15_000)
_toml("toml-huge-number", "seed = 0x" + "f" * 30_000)


def _session(name: str, data: bytes) -> None:
    def make(base: Base) -> Case:
        readers = (
            command("sessions", "list", "--json", codes=(OK,), json=True),
            command("sessions", "show", SESSION, "--json", codes=(OK,), json=True),
            command("-p", "hi", "-m", "{case}/model", "--resume", SESSION, *QUESTION, codes=(OK, 4)),
        )
        exports = [
            command("sessions", "export", SESSION, f"{{case}}/x.{form}", codes=(OK,), harmless=f"x.{form}")
            for form in ("md", "html", "json")
        ]
        return _made(base, name, {sessions.FILE: data}, *readers, *exports)

    CASES[name] = make


_TURNS = [
    {"node": {"id": 1, "parent": None, "role": "user", "content": "hi"}},
    {"node": {"id": 2, "parent": 1, "role": "assistant", "content": "hello"}},
]
_DEEP = [{"node": {"id": n + 1, "parent": n or None, "role": "user", "content": "x"}} for n in range(8_000)]
_HIDDEN = "\x1b]0;t\x07\x9b31m\u202e\u200e\u200f\u061c\xad\x00"
_session(
    "session-of-dropped",
    sessions.header()
    + sessions.encoded([*_DEEP, *({"dropped": [n % 8_000 + 1], "summary": "s"} for n in range(20_000))]),
)
_session(
    "session-of-heads",
    sessions.header() + sessions.encoded([*_DEEP, *({"head": n % 8_000 + 1} for n in range(20_000))]),
)
_session(
    "session-of-control-characters",
    sessions.header(name=_HIDDEN, model=_HIDDEN)
    + sessions.encoded(
        [
            {"title": _HIDDEN},
            {"system": _HIDDEN},
            {
                "node": {
                    "id": 1,
                    "parent": None,
                    "role": "user",
                    "content": f"a {_HIDDEN}\n```{_HIDDEN}\n{_HIDDEN}\n```",
                }
            },
            {"node": {"id": 2, "parent": 1, "role": "assistant", "content": f"[{_HIDDEN}](javascript:{_HIDDEN})"}},
        ]
    ),
)


@_case("session-is-a-link")
def _linked_session(base: Base) -> Case:
    files: Files = {sessions.FILE: Link("../../secret/canary"), "sessions/ffffffff": Link("../secret")}
    listed = command("sessions", "list", "--json", codes=(OK,), json=True)
    return _made(base, "", files, listed, command("sessions", "show", SESSION, codes=(RUNTIME, USAGE)))


@_case("session-names-a-path-as-its-model")
def _session_model(base: Base) -> Case:
    first, *rest = session_lines(base.session)
    header = {**json.loads(first), "model": "../secret"}
    data = json.dumps(header).encode() + b"\n" + b"".join(rest)
    asked = command("-p", "hi", "--resume", SESSION, *QUESTION, codes=(OK, USAGE, MODEL))
    return _made(base, "", {sessions.FILE: data}, asked, environment={"QWCHAT_MODEL": "{case}/model"})


@_case("weights-with-one-flipped-bit")
def _flipped(base: Base) -> Case:
    data = bytearray((base.model / "weights.bin").read_bytes())
    data[len(data) // 2] ^= 0x40
    asked = command("-p", "hi", "-m", "{case}/model", *QUESTION, codes=(MODEL,))
    return _made(base, "", {"model/weights.bin": bytes(data)}, asked)


@_case("generation-config-of-40-gb")
def _large_generation(base: Base) -> Case:
    asked = command("-p", "hi", "-m", "{case}/model", "--seed", "1", codes=(MODEL,))
    return _made(base, "", {f"model/{_GENERATION}": Sparse(b"{}", 40 << 30)}, asked)


def _numbers(name: str, file: str, text: str) -> None:
    """Add a case that sets one key of a small file as text, since some numbers cannot be written otherwise."""

    def make(base: Base) -> Case:
        values = parsed(base.model, file)
        key = json.loads("{" + text.partition(":")[0] + ": 0}")
        kept = {name: value for name, value in values.items() if name not in key}
        data = json.dumps(kept)[:-1] + ", " + text + "}"
        return _model(base, name, {file: data.encode()})

    CASES[name] = make


_numbers("config-rope-theta", "config.json", '"rope_theta": 1e300')
_numbers("config-rope-theta-tiny", "config.json", '"rope_theta": 5e-324')
_numbers("config-eps", "config.json", '"rms_norm_eps": 1e30')
_YARN = '"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, '
_numbers("config-yarn-betas", "config.json", _YARN + '"beta_fast": 1e-300, "beta_slow": 1e300}')
_numbers(
    "config-yarn-equal-betas", "config.json", _YARN + '"beta_fast": 1.0, "beta_slow": 1.0, "attention_factor": 1e30}'
)
_numbers("config-of-400-digits", "config.json", '"max_position_embeddings": ' + "9" * 400)
_numbers("temperature-of-400-digits", _GENERATION, '"temperature": ' + "9" * 400)
_numbers("top-k-of-400-digits", _GENERATION, '"top_k": ' + "9" * 400)
_numbers("eos-of-400-digits", _GENERATION, '"eos_token_id": ' + "9" * 400)


@_case("shard-of-5000-characters")
def _shard_name(base: Base) -> Case:
    index = {"weight_map": {"model.norm.weight": "x" * 5_000}}
    files: Files = {"source/model.safetensors.index.json": json.dumps(index).encode()}
    return _made(base, "", files, command("convert", "{case}/source", "{case}/made", codes=(MODEL,)))


@_case("shard-outside-of-the-folder")
def _shard_outside(base: Base) -> Case:
    index = {"weight_map": {"model.norm.weight": "../secret/canary"}}
    files: Files = {"source/model.safetensors.index.json": json.dumps(index).encode()}
    return _made(base, "", files, command("convert", "{case}/source", "{case}/made", codes=(MODEL,)))


@_case("safetensors-header-of-2-to-63")
def _long_header(base: Base) -> Case:
    header, data = checkpoints.split((base.checkpoint / "model.safetensors").read_bytes())
    made = checkpoints.join(json.dumps(header).encode(), data, (1 << 63) - 1)
    converting = command("convert", "{case}/source", "{case}/made", codes=(MODEL,))
    return _made(base, "", {"source/model.safetensors": made}, converting)


@_case("safetensors-header-of-90-mb")
def _large_header(base: Base) -> Case:
    entries = b",".join(b'"%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' % n for n in range(1_500_000))
    made = checkpoints.join(b"{" + entries + b"}", bytes(4))
    converting = command("convert", "{case}/source", "{case}/made", codes=(MODEL,))
    return _made(base, "", {"source/model.safetensors": made}, converting)


@_case("odd-manifest")
def _odd_manifest(base: Base) -> Case:
    manifest = parsed(base.model, "manifest.json")
    manifest |= {"settings": {"preset": "\x1b[31m" * 50, "x": [[[]]]}, "source": {"fingerprint": "", "name": 5}}
    files: Files = {"model/manifest.json": json.dumps(manifest).encode()}
    shown = (command("show", "{case}/model", *more, codes=(OK, MODEL)) for more in ((), ("--json",)))
    return _made(base, "", files, *shown)


@_case("closed-standard-output")
def _closed(base: Base) -> Case:
    ways = (("config", "show"), ("sessions", "list"), ("sessions", "show", SESSION), ("show", "{case}/model"), _FAMILY)
    commands = (command(*words, codes=(BROKEN_PIPE,), closed=how) for how in ("reader", "descriptor") for words in ways)
    return _made(base, "", {}, *commands)


@_case("pipes-for-settings")
def _pipes(base: Base) -> Case:
    from tests.fuzz.case import Pipe

    files: Files = {settings.USER: Pipe(), settings.PROJECT: Pipe(), settings.PERSONA: Pipe()}
    return _made(
        base, "", files, command("config", "show", codes=(OK, USAGE)), command(*_FAMILY, "--as", "some", codes=(USAGE,))
    )


@_case("project-file-that-chooses")
def _choosing(base: Base) -> Case:
    files: Files = {settings.PROJECT: b'model = "../secret"\n'}
    return _made(base, "", files, command("-p", "hi", codes=(USAGE,)), command("config", "show", codes=(USAGE,)))


_SHADOWS = (
    "numba",
    "llvmlite",
    "numpy",
    "jinja2",
    "tokenizers",
    "typer",
    "rich",
    "yaml",
    "sitecustomize",
    "usercustomize",
)


@_case("project-full-of-configuration")
def _project(base: Base) -> Case:
    """Put files that libraries look for into the working folder; none of them may be opened."""
    names = [f"work/{name}" for name in (".numba_config.yaml", ".env", "pyproject.toml", "setup.cfg", ".pythonrc.py")]
    names += [f"work/{name}.py" for name in _SHADOWS] + ["work/.git/config", "work/models/mini/manifest.json"]
    files: Files = dict.fromkeys(names, b"raise SystemExit('read')\n")
    files["work/.numba_config.yaml"] = b"cache_dir: {case}/secret\ndebug_cache: 1\n"
    ways = (
        command(*_FAMILY, codes=(OK,), json=True),
        command("convert", "{case}/source", "{case}/made", "-q", codes=(OK,)),
        command("config", "show", codes=(OK,)),
    )
    files |= {f"cache/{name}": data for name, data in base.code.items()}
    return _made(base, "", files, *ways, forbidden=("secret", *names), fresh=True)
