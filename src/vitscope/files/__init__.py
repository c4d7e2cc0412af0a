"""Reading and writing files, atomically and safely."""
