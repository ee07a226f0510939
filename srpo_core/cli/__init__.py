"""The command `srpo`: one module for each panel of its help, and what the commands share."""
