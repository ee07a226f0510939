"""Training on Ray: launch, workers, the optimizer step, checkpoints, early stop."""
