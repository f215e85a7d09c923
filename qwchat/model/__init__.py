"""What all devices share of a model: the decoder protocol, RoPE, the KV file, and a reference in NumPy."""
