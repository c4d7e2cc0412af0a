"""Maps: how much each patch matters for the output, by many methods."""
