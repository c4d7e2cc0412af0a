"""Adapters: one file per library, each imported only when one of its models is asked for."""
