"""All of the paper's experiments on any models and images, compared with its claims."""
