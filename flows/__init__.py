"""The orchestration: Prefect flows, thin, over the stage graph of dvc.yaml."""
