"""RULER's 13 tasks: the prompts of its own generator from its own random streams, and its own metrics."""
