"""A needle in a haystack, as the paper asks for it: each cell many times, every time with another needle and another text."""
