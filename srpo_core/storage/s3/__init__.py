"""A release store in an S3 bucket, with boto3. Endpoint and credentials come from the AWS_* environment.

objects/<sha256>                                  the bytes of a file under their own digest, shared by all versions
models/<model>/versions/<version>/manifest.json   written last: a version without a manifest does not exist
models/<model>/aliases/<name>.json                moved by conditional writes
reports/<run>/                                    report and grid of a run, for people

What a killed publisher leaves behind is never visible, and its next attempt resumes from it.
"""

from srpo_core.storage.s3.store import S3Store

__all__ = ["S3Store"]
