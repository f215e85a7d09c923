"""Limits that several layers check. A limit of a single module is defined in that module."""

from __future__ import annotations

MAX_SEED = 2**64 - 1
MAX_THREADS = 256
DEFAULT_CONTEXT = 4096
"""Default context window in tokens, if the model supports it."""
EXACT_CACHE_BYTES = 128 << 20
"""Largest f32 KV cache in bytes that `auto` uses; it is small compared with the weights."""
ACTIVATION_BITS = (8, 16)
"""Bits of activations that the kernels of integer formats compute with."""
DEFAULT_ACTIVATIONS = 8
MAX_TEMPERATURE = 5
MAX_PENALTY = 2
"""Largest absolute value of presence and frequency penalties."""
MAX_LOGPROBS = 20
"""Most likely tokens that can be reported per position."""
MAX_INTEGER = 2**31 - 1
"""Largest value of integers without a limit of their own, such as token counts."""
MAX_CONSTRAINT_BYTES = 1 << 20
"""Largest size of a regular expression, a JSON schema with its file, or all choices together."""
