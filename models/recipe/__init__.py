"""Recipe of `models/mini`: dialogues, tokenizer, training, evaluation and figures."""
