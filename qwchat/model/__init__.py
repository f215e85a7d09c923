"""The Qwen2 decoder: weights, cache and forward pass."""
