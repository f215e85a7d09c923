"""GGUF files: header, metadata, block types and tensors, and the source that makes a model of them."""
