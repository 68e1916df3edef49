"""The model: what its layers are (`spec`), what they compute (`decoder`), what they cost (`accounting`)."""
