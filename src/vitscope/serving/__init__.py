"""A local page that explains the images dropped on it."""
