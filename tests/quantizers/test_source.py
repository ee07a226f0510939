"""The digest of the weights that a file was converted from."""

import hashlib
import subprocess

from srpo_core.quantizers.source import source_digest


def test_the_digest_of_one_file_is_its_sha256_and_that_of_several_is_over_the_lines_of_sha256sum(tmp_path):
    files = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 100)
    assert source_digest(files[:1]) == hashlib.sha256(bytes(100)).hexdigest()
    lines = subprocess.run(
        ["sha256sum", *(path.name for path in files)], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert source_digest(files) == hashlib.sha256(lines).hexdigest()
    files[1].write_bytes(b"other")
    assert source_digest(files) != hashlib.sha256(lines).hexdigest()
