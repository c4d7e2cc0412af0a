"""Where a model meets images: audits, one-shot classification, explanations."""
