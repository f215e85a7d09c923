"""Chat templates of reasoning models, written for the tests, with the structure of the published ones.

They keep what makes those hard: no newlines between the turns of R1, a generation prompt that opens the thought or does
not, thoughts that are cut at the last closing tag, and Qwen3's search for the last question.
"""

from __future__ import annotations

_R1 = """\
{% set found = namespace(system='') %}
{%- for turn in messages if turn.role == 'system' %}{% set found.system = turn.content %}{% endfor -%}
{{ bos_token }}{{ found.system }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- '<｜User｜>' + turn.content }}
    {%- elif turn.role == 'assistant' and turn.content is not none %}
        {%- set answer = turn.content.split('</think>')[-1] if '</think>' in turn.content else turn.content %}
        {{- '<｜Assistant｜>' + answer + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>OPENING' }}{% endif %}"""

R1 = _R1.replace("OPENING", "<think>\\n")
"""Opens the thought at the end of the prompt."""

R1_FIRST = _R1.replace("OPENING", "")
"""An earlier revision: the model writes the opening tag."""

QWQ = """\
{% if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- set content = turn.content %}
    {%- if turn.role == 'assistant' %}
        {%- set content = content.split('</think>') | last %}
        {%- set content = content.lstrip('\\n') %}
    {%- endif %}
    {%- if turn.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + turn.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""

QWEN3 = """\
{% if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=messages | length - 1, found=false) %}
{%- for turn in messages[::-1] %}
    {%- if turn.role == 'user' and not last.found and not turn.content.startswith('<tool_response>') %}
        {%- set last.found = true %}
        {%- set last.question = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set content = turn.content if turn.content is string else '' %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- set thought = turn.reasoning_content if turn.reasoning_content is string else '' %}
        {%- if turn.reasoning_content is not string and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.question and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

R1_TOKENS = (
    *("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<|EOT|>"),
    *("<think>", "</think>"),
)
"""Added tokens of R1, from the id of `<|endoftext|>` in Qwen2 on."""
