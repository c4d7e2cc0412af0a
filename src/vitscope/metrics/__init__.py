"""Statistics over a set of images: float64 sums that merge, and pure functions of them."""
