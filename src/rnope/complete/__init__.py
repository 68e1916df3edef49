"""Text in, text out: a model folder with its tokenizer (`completer`), conversations (`chat`), and ``rnope generate``."""
