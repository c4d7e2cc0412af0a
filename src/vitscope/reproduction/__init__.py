"""All of the paper's experiments on any set of models and images, and what they say of it."""
