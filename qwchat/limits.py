"""Limits that several layers check, each written once. A limit of a single module is defined in that module."""

from __future__ import annotations

MAX_SEED = 2**64 - 1
MAX_THREADS = 256
DEFAULT_CONTEXT = 4096
"""Tokens of context where none are asked for, if the model has as many."""
EXACT_CACHE_BYTES = 128 << 20
"""Bytes up to which a KV cache of the kind `auto` keeps f32: such a cache is small beside the weights."""
MAX_TEMPERATURE = 5
MAX_PENALTY = 2
"""Of presence and frequency penalties, which may also be as much below zero."""
MAX_LOGPROBS = 20
"""Likeliest tokens that are reported in the place of each token."""
MAX_INTEGER = 2**31 - 1
"""Of whole numbers without a limit of their own, such as counts of tokens: every part of the program counts as far."""
MAX_CONSTRAINT_BYTES = 1 << 20
"""Of a regular expression, of a JSON schema and its file, or of all choices."""
