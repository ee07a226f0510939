"""A workspace per run, the stage graph, data versions."""
