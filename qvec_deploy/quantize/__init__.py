"""Weights to integer codes: the numpy reference, the same through ModelOpt, and rounding that looks at activations."""
