"""Drawing of figures with matplotlib."""
