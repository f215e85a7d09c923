"""Random models for the parity tests, and the results of transformers for them.

The reference is always loaded from disk at the wanted precision. Casting a loaded model would also cast RoPE's table of
inverse frequencies, which transformers computes in float32 whatever the precision of the weights.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quant.checkpoints import make_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed (extra `oracle`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `oracle`)")

Logits = np.ndarray  # (tokens, vocab)

HEADS = ((2, 2), (6, 1), (7, 1), (8, 1), (1, 1), (12, 2), (14, 2), (16, 2), (3, 3))
# transformers shows a progress bar for loading 15 tensors.
transformers.utils.logging.disable_progress_bar()

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 33, 64, 100, 127, 128, 129, 200, 257, 511)
LONG = {3: 1500, 10: 700, 21: 3000, 30: 1025, 36: 3000, 47: 2049}
"""Case number -> length, for the few long ones."""
VOCABULARIES = (320, 283, 512, 1000, 299)
"""Rows of the embedding; the tokenizer has 283 ids, so all but one pad."""
K_BIAS_NORMS = (None, None, 100.0, None, None, 900.0, None)

ROPES: tuple[dict[str, Any], ...] = (
    {"max_position_embeddings": 4096},
    # max_position_embeddings is the native length, as in Instruct models whose YaRN was enabled by hand.
    {"max_position_embeddings": 1024, "rope_scaling": {"type": "yarn", "factor": 4.0, "original": 1024}},
    {"max_position_embeddings": 4096, "rope_theta": 1e4},
    # max_position_embeddings is the extended length, as in base models and newer files.
    {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original": 1024}},
    {"max_position_embeddings": 32768},
    # The native length is missing: transformers uses max_position_embeddings instead.
    {"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": 2.0}},
    {
        "max_position_embeddings": 3000,
        "rope_theta": ...,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 3.0, "original": 1000, "beta_fast": 16.0},
    },
    {"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.25}},
)


@dataclass(frozen=True)
class Case:
    """One random model and one random prompt; everything follows from `number`."""

    number: int
    overrides: dict[str, Any] = field(repr=False)
    k_bias_norm: float | None
    length: int
    faint: bool
    """Whether the embedding is so small that the epsilon of the first norm shows in the logits."""

    @property
    def name(self) -> str:
        """Name that pytest shows."""
        values = self.overrides
        heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
        parts = [f"{self.number:02d}", f"{heads}of{kv_heads}x{values['head_dim']}", f"{self.length}tokens"]
        parts += [f"qwen3-{values['hidden_size']}"] * (values.get("model_type") == "qwen3")
        parts += ["tied"] * values["tie_word_embeddings"]
        parts += ["yarn"] * uses_yarn(self)
        parts += [] if self.k_bias_norm is None else [f"kbias{self.k_bias_norm:.0f}"]
        return "-".join(parts)

    def write(self, folder: Path) -> Path:
        """Write the checkpoint in float32."""
        return make_checkpoint(
            folder,
            seed=self.number,
            config_overrides=self.overrides,
            dtype="f32",
            k_bias_norm=self.k_bias_norm,
            edit=shrink_embedding if self.faint else None,
        )

    def token_ids(self) -> list[int]:
        """Return `length` ids from the whole vocabulary, padding rows included."""
        drawn = np.random.default_rng(self.number).integers(self.overrides["vocab_size"], size=self.length)
        return [int(token) for token in drawn]


QWEN3_LONG = {5: 700, 14: 1500, 22: 3000}


def make_qwen3_case(number: int) -> Case:
    """Draw a Qwen3 model whose heads together are wider or narrower than the residual stream."""
    drawn = random.Random(1000 + number)
    heads, kv_heads = HEADS[number % len(HEADS)]
    head_dim = drawn.choice((64, 128))
    widths = [width for width in (64, 160, 256, 896, 1024) if width != heads * head_dim]
    rope = {"max_position_embeddings": 4096} if number % 3 else dict(ROPES[5])
    overrides = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": widths[number % len(widths)],
        "intermediate_size": drawn.choice((96, 160, 224, 352)),
        "num_hidden_layers": drawn.choice((1, 2, 2, 3)),
        "rms_norm_eps": drawn.choice((1e-6, 1e-5)),
        "tie_word_embeddings": number % 2 == 0,
        "vocab_size": VOCABULARIES[number % len(VOCABULARIES)],
        "rope_theta": 1e6,
        "torch_dtype": "float32",
        **rope,
    }
    length = QWEN3_LONG.get(number, LENGTHS[number * 5 % len(LENGTHS)])
    return Case(1000 + number, overrides, None, length, number % 3 == 1)


def shrink_embedding(tensors: dict[str, np.ndarray]) -> None:
    """Scale the embedding to mean squares of about 1e-5, as large as the epsilons."""
    tensors["model.embed_tokens.weight"] *= np.float32(0.003 / tensors["model.embed_tokens.weight"].std())


def make_case(number: int) -> Case:
    """Draw a Qwen2 model; axes with many values follow the number in turn, those with two are drawn."""
    drawn = random.Random(number)
    heads, kv_heads = HEADS[number % len(HEADS)]
    head_dim = drawn.choice((64, 128))
    rope = dict(ROPES[number % len(ROPES)])
    for key in ("rope_scaling", "rope_parameters"):
        if key in rope:
            scaling = dict(rope[key])
            if "original" in scaling:
                scaling["original_max_position_embeddings"] = scaling.pop("original")
            rope[key] = scaling
    overrides = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": heads * head_dim,
        "intermediate_size": drawn.choice((96, 160, 224, 352)),
        "num_hidden_layers": drawn.choice((1, 2, 2, 3)),
        "rms_norm_eps": drawn.choice((1e-6, 1e-5)),
        "tie_word_embeddings": drawn.random() < 0.5,
        "vocab_size": VOCABULARIES[number % len(VOCABULARIES)],
        "rope_theta": 1e6,
        "torch_dtype": "float32",
        **rope,
    }
    norm = K_BIAS_NORMS[number % len(K_BIAS_NORMS)]
    return Case(number, overrides, norm, LONG.get(number, LENGTHS[number * 5 % len(LENGTHS)]), number % 3 == 1)


def uses_yarn(case: Case) -> bool:
    """Return whether the config enables YaRN, in either spelling."""
    return any("yarn" in str(case.overrides.get(key)) for key in ("rope_scaling", "rope_parameters"))


CASES = tuple(make_case(number) for number in range(48))
QWEN3_CASES = tuple(make_qwen3_case(number) for number in range(24))


def load_reference(folder: Path, dtype: Any, attention: str = "eager") -> Any:
    """Return transformers' model of the files in `folder`: Qwen2ForCausalLM or Qwen3ForCausalLM."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.eval()


def logits_of(model: Any, token_ids: list[int]) -> Logits:
    """Return logits (tokens, vocab) in the precision of the model."""
    with torch.inference_mode():
        logits: Logits = model(torch.tensor([token_ids])).logits[0].numpy()
    return logits


def reference_logits(folder: Path, token_ids: list[int], dtype: Any = torch.float32) -> Logits:
    """Return logits of transformers, (tokens, vocab).

    It uses the attention that materialises scores only where they are small.
    """
    attention = "eager" if len(token_ids) <= 1100 else "sdpa"
    return logits_of(load_reference(folder, dtype, attention), token_ids)


def distance(logits: Logits, reference: Logits) -> float:
    """Return the largest difference, relative to the largest logit of the reference."""
    difference = np.abs(logits.astype(np.float64) - reference.astype(np.float64)).max()
    return float(difference / np.abs(reference).max())
