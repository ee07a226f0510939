"""The bytes that a store keeps, read and changed without the store's own code."""

from datetime import UTC, datetime, timedelta
from pathlib import Path


class Files:
    """The files of a store by name; they can be read, written, listed and deleted."""

    def __init__(self, store):
        self.root = Path(store.uri) if "://" not in store.uri else None
        self.place = (
            None if self.root else dict(zip(("Bucket", "Prefix"), store.uri[5:].split("/", 1), strict=True))
        )

    def __iter__(self):
        if self.root:
            found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
            return iter(sorted(str(path) for path in found if "lock" not in path.name))
        prefix = f"{self.place['Prefix']}/"
        listed = self.client.list_objects_v2(Bucket=self.place["Bucket"], Prefix=prefix)["Contents"]
        return iter([entry["Key"].removeprefix(prefix) for entry in listed])

    def __getitem__(self, name):
        if self.root:
            return (self.root / name).read_bytes()
        return self.client.get_object(**self.key(name))["Body"].read()

    def __setitem__(self, name, data):
        if self.root:
            (self.root / name).write_bytes(data)
        else:
            self.client.put_object(**self.key(name), Body=data)

    def __delitem__(self, name):
        if self.root:
            (self.root / name).unlink()
        else:
            self.client.delete_object(**self.key(name))

    @property
    def client(self):
        import boto3

        return boto3.client("s3")

    def key(self, name):
        return {"Bucket": self.place["Bucket"], "Key": f"{self.place['Prefix']}/{name}"}


def make_older(bucket, **by):
    """Make all objects of a bucket older, in the memory of moto."""
    from moto.s3.models import s3_backends

    (backend,) = (backend for backend in s3_backends["123456789012"].values() if bucket in backend.buckets)
    for entry in backend.buckets[bucket].keys.values():
        entry.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(**by)
