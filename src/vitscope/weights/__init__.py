"""Where weights come from: the hub, checkpoints, folders, the catalogue."""
