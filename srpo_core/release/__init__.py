"""Releases: publish a run's results, move aliases, download, verify, list and remove releases.

A release is a version in a store (srpo_core/storage): a complete diffusers pipeline with the aligned transformer,
the other formats, the evidence (report, decision, proof), and what reproduces it (params.yaml, dvc.yaml, dvc.lock,
git revision). Its name is `<release.name>-<first 12 hex digits of the SHA-256 of dvc.lock>`, so the same run always
gives the same version. An alias such as `<model>/production` points to a version and can be moved.

Import from the modules: importing this package loads none of them, so that stage evaluate, which needs only
`champion`, does not depend on the rest.
"""
