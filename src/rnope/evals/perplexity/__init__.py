"""How well a model foresees plain text, by position in the context."""
