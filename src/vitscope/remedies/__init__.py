"""Remedies: edits of a model that end with a context, and what they change."""
