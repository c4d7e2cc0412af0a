"""The common adapter class, and how models are run, traced and compared."""
