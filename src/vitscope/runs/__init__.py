"""Runs of a model over images: audits, one-shot classification, explanations."""
