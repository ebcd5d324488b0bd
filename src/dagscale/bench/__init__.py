"""Studies: what a law or an init is worth, measured by training; the product does without them."""
