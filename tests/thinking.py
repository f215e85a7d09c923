"""Tiny random checkpoints of reasoning models, with templates in the manner of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from tests.quant.checkpoints import make_checkpoint, write_json

OPENED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|im_end|>' + message['content'].split('</think>')[-1] + '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\\n' }}{% endif %}"
)
"""Opens the thought in the prompt, and cuts thoughts of earlier replies."""

SWITCHED = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Lets the model open its thought, and writes an empty one if `enable_thinking` is false."""

OPENING_ID, CLOSING_ID = 283, 284


def make_thinking_checkpoint(folder: Path, template: str, *, tokens: bool = True) -> Path:
    """Write a checkpoint with this template; with `tokens`, its tokenizer has the think tags as added tokens."""
    make_checkpoint(folder, config_overrides={"hidden_size": 128, "max_position_embeddings": 512})
    config_path, tokenizer_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    write_json(config_path, config | {"chat_template": template})
    if tokens:
        tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
        flags = {**tokenizer["added_tokens"][0], "special": False}
        assert tokenizer["added_tokens"][-1]["id"] == OPENING_ID - 1
        tokenizer["added_tokens"] += [
            {**flags, "id": OPENING_ID, "content": OPENING_TAG},
            {**flags, "id": CLOSING_ID, "content": CLOSING_TAG},
        ]
        write_json(tokenizer_path, tokenizer)
    return folder
