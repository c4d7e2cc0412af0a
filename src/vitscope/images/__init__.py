"""Images: finding, decoding, preprocessing and describing them."""
