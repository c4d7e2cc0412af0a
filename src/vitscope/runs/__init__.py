"""Where a model meets pictures: audits, one-shot classification, explanations."""
