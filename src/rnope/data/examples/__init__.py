"""Completion-only examples of the paper's four long kinds (section 4): prompts of a given length and what is to follow."""
