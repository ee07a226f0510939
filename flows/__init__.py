"""Prefect flows: a thin layer over the stage graph of dvc.yaml and the functions of srpo_core."""
