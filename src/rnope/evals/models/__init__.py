"""The three kinds of model that can be evaluated, behind one interface: `rnope` folders, Hugging Face folders, servers."""
