"""How `models/mini` is made: dialogues, tokenizer, training, evaluation, figures."""
