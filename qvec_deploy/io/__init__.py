"""Files, and everything that is read from or written to them."""
