"""The directory that is released: what is in it, opening it, verifying it, measuring it."""
