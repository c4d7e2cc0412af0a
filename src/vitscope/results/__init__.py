"""Saved results: everything later is drawn from them, without a model."""
