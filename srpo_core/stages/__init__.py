"""One module per stage of dvc.yaml; each has one `run(...)` that receives its part of the settings."""
