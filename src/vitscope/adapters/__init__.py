"""A file per library that models come from, and the registry of them."""
