"""The command `srpo`."""
