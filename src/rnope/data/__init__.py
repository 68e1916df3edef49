"""Text, needles and the rows made of them."""
