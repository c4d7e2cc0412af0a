"""All of the paper's experiments on any set of models and pictures, and what they say of it."""
