"""Images: finding, decoding and describing them, and what a model wants of them."""
