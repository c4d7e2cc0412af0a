"""One adapter module per supported library, and their registry."""
