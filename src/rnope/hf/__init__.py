"""Hugging Face folders in and out: what a model is called there (`mapping`) and how it lies on disk (`folder`)."""
