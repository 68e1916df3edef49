"""Training through the stages of a recipe, in one process or over many ranks."""
