"""Text handling around the model: tokenizer, chat template, stop strings, sampling defaults."""
