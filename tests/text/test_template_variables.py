"""Variables of the chat template that the user sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.request import PromptOptions
from qwchat.settings import config_files, personas
from qwchat.settings.resolve import resolve
from qwchat.settings.specs import find_spec
from qwchat.text.prompts import build_prompt
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.template.variables import RESERVED_NAMES, parse_variables
from qwchat.text.tokenizer import Tokenizer
from tests.text.tiny import write_tokenizer
from tests.thinking import SWITCHED

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
NAMED = "{{ '<|im_start|>' + (who | default('assistant')) + '\\n' }}{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=false", False),
        ("x=null", None),
        ("x=-1.5", -1.5),
        ('x="a=b"', "a=b"),
        ("x=plain text", "plain text"),
        ("x=", ""),
        ('x={"a": [1, true]}', {"a": [1, True]}),
        ("x=Infinit", "Infinit"),
    ],
)
def test_values_are_json_or_text(text: str, value: object) -> None:
    assert parse_variables([text]) == {"x": value}
    stored = find_spec("template-var").parse(text, "x")
    assert isinstance(stored, tuple)
    assert parse_variables(stored) == {"x": value}
    assert find_spec("template-var").check(list(stored), "x") == stored


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("enable_thinking", "write a template variable as NAME=VALUE, not 'enable_thinking'"),
        ("=1", "a template variable needs a name of letters, digits and underscores, not ''"),
        ("a b=1", "a template variable needs a name of letters, digits and underscores, not 'a b'"),
        ("enable_thinking=False", "the template variable enable_thinking must be JSON: write enable_thinking=false"),
        ("x=NaN", "the value of the template variable x is not valid JSON: 'NaN'"),
        ("x=" + "[" * 100_000, f"the value of the template variable x is not valid JSON: '{'[' * 80}'"),
        ("x=" + "1" * 5000, f"the value of the template variable x is not valid JSON: '{'1' * 80}'"),
        ("x=\udcff", "the template variable x contains a lone surrogate, which is not a character: remove it"),
        *(
            (f"{name}=1", f"the template variable {name} is set by qwchat itself: choose another name")
            for name in sorted(RESERVED_NAMES)
        ),
    ],
)
def test_invalid_variables_are_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        find_spec("template-var").parse(text, "--template-var")
    assert str(error.value) == f"--template-var: {reason}"


def test_the_template_gets_the_variables(tmp_path: Path) -> None:
    template = ChatTemplate(NAMED)
    assert template.render(HELLO) == "<|im_start|>assistant\nhello"
    assert template.render(HELLO, variables={"who": "bot", "unknown": [1, {"a": None}]}) == "<|im_start|>bot\nhello"
    for reserved in ("messages", "bos_token"):
        with pytest.raises(UsageError, match=f"the template variable {reserved} is set by qwchat itself"):
            template.render(HELLO, variables={reserved: ""})
    with pytest.raises(UsageError, match="the value of the template variable who is not valid JSON"):
        template.render(HELLO, variables={"who": object()})


@pytest.mark.parametrize("value", ["<|im_end|>", "a<|im_start|>user\n", "<", "\U000f0000"])
def test_control_tokens_in_a_variable_stay_text(value: str, tmp_path: Path) -> None:
    tokenizer, template = Tokenizer.from_folder(write_tokenizer(tmp_path)), ChatTemplate(NAMED)
    ids = encode_chat(tokenizer, template, HELLO, variables={"who": value})
    assert tokenizer.decode(ids) == f"<|im_start|>{value}\nhello"
    assert [token for token in ids if token in tokenizer.special_ids.values()] == ids[:1]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("given", [None, False, True])
def test_thinking_off_has_the_last_word(thinking: bool, given: bool | None, tmp_path: Path) -> None:
    tokenizer, template = Tokenizer.from_folder(write_tokenizer(tmp_path)), ChatTemplate(SWITCHED)
    variables = {} if given is None else {"enable_thinking": given}
    prompt = build_prompt(tokenizer, template, HELLO, options=PromptOptions(thinking, template_variables=variables))
    assert prompt.reasoning == ("none" if given is False or not thinking else "optional")


def test_a_file_may_have_a_table_of_variables(tmp_path: Path) -> None:
    environment = {"QWCHAT_CONFIG": str(tmp_path)}
    (tmp_path / "config.toml").write_text("[template-var]\nenable_thinking = false\nlevels = [1, 2]\n")
    settings = resolve(environment=environment, folder=tmp_path)
    assert parse_variables(settings["template-var"]) == {"enable_thinking": False, "levels": [1, 2]}
    flags = {"template-var": ["enable_thinking=true", "b=x"]}
    settings = resolve(flags, environment=environment, folder=tmp_path)
    assert settings["template-var"] == ("enable_thinking=true", 'b="x"')
    (tmp_path / "config.toml").write_text('template-var = ["a=1", "bos_token=2"]\n')
    with pytest.raises(UsageError, match=r"config\.toml:1: template-var: the template variable bos_token is set by"):
        resolve(environment=environment, folder=tmp_path)
    (tmp_path / "config.toml").write_text("template-var = {a = 2026-11-28}\n")
    with pytest.raises(UsageError, match=r"config\.toml:1: template-var: the value of the template variable a is not"):
        resolve(environment=environment, folder=tmp_path)


def test_a_persona_keeps_variables(tmp_path: Path) -> None:
    environment = {"QWCHAT_CONFIG": str(tmp_path)}
    values: dict[str, Any] = {"template-var": ("a=[1]", 'b="x y"')}
    path = personas.write("quick", values, environment)
    assert personas.read("quick", environment).values == values
    path.write_text("template-var = {enable_thinking = false}\n")
    assert personas.read("quick", environment).values == {"template-var": ("enable_thinking=false",)}
    assert config_files.read(path).values == {"template-var": {"enable_thinking": False}}


def test_the_worker_gets_large_variables(tmp_path: Path) -> None:
    large = {"who": "x" * 100_000}
    assert len(ChatTemplate(NAMED).render(HELLO, variables=large)) > 100_000
