"""Many builds at once, what is equal made once, and one summary."""
