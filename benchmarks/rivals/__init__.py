"""Rivals of our formats, by their own algorithms: GPTQ, AWQ, and llama.cpp's quantiser with an importance matrix."""
