"""Experiments about the method. Nothing of the product imports them."""
