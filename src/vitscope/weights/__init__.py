"""Sources of weights: the hub, checkpoints, local folders, the catalogue."""
