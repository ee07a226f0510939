"""`srpo data` compares its copies of the data with the free space before it makes any."""

import shutil
from pathlib import Path

import boto3
import pytest

from srpo_core.data.sources.rows import visible_files
from srpo_core.errors import DataError
from srpo_core.workspace import data_space, data_versions
from srpo_core.workspace.data_space import require_space
from srpo_core.workspace.worktree import Workspace

HPD = Path(__file__).resolve().parents[2] / "assets/tiny/hpd"
SIZE = 2_000_000  # bytes


@pytest.fixture
def workspace(tmp_path):
    """A workspace with DVC's configuration, whose remote is a directory, and nothing else."""
    path = tmp_path / "run/workspace"
    (path / ".dvc").mkdir(parents=True)
    use_remote(path, tmp_path / "remote")
    return Workspace("run", path, path, tmp_path, "")


def use_remote(path, url):
    cache = path.parents[1] / "cache"
    (path / ".dvc/config").write_text(
        f"[core]\n    no_scm = true\n    remote = far\n[cache]\n    dir = {cache}\n    type = copy\n"
        f"['remote \"far\"']\n    url = {url}\n"
    )


@pytest.fixture
def free(monkeypatch):
    """Give every file system so many free bytes."""
    usage = shutil.disk_usage("/")

    def give(size):
        monkeypatch.setattr(data_space.shutil, "disk_usage", lambda _: usage._replace(free=size))

    return give


@pytest.fixture
def source(tmp_path):
    """HPDv2 of 2 MB, nearly all of it an archive, beside files that are no part of a version."""
    source = tmp_path / "source"
    shutil.copytree(HPD, source)
    (source / "test.tar").write_bytes(bytes(1024))
    (source / "train.tar").unlink()
    rest = sum(path.stat().st_size for path in visible_files(source))
    (source / "train.tar").write_bytes(bytes(SIZE - rest))
    (source / "benchmark_imgs.tar").write_bytes(bytes(SIZE))
    (source / ".cache").mkdir()
    (source / ".cache/part").write_bytes(bytes(SIZE))
    return source


def test_the_workspace_the_cache_and_a_remote_in_a_directory_have_to_fit(workspace, source, free):
    free(3 * SIZE)
    require_space(workspace, str(source), "hpdv2")
    free(3 * SIZE - 1)
    with pytest.raises(DataError) as found:
        require_space(workspace, str(source), "hpdv2")
    line = str(found.value)
    assert line.startswith(
        f"{source}: its copies need 6.0 MB on the file system of {workspace.path}, and 6.0"
    )
    assert "(2.0 MB in the workspace + 2.0 MB in DVC's cache + 2.0 MB in the DVC remote): free some" in line
    assert "SRPO_HOME" in line
    assert "\n" not in line
    assert list(workspace.path.iterdir()) == [workspace.path / ".dvc"]


def test_an_archive_that_is_unpacked_needs_its_size_once_more(workspace, source, free):
    packed = (source / "train.tar").rename(source / "train.tar.gz").stat().st_size
    free(3 * SIZE + packed)
    require_space(workspace, str(source), "hpdv2")
    free(3 * SIZE + packed - 1)
    with pytest.raises(DataError, match=r"MB to unpack archives \+"):
        require_space(workspace, str(source), "hpdv2")


def test_a_bucket_as_the_remote_takes_no_space_here(workspace, source, free):
    use_remote(workspace.path, "s3://bucket/dvc")
    free(2 * SIZE)
    require_space(workspace, str(source), "hpdv2")


def test_large_files_that_the_cache_and_the_remote_have_are_not_counted_again(workspace, source, free):
    for objects in (workspace.home / "cache/files/md5/ab", workspace.home / "remote/files/md5/ab"):
        objects.mkdir(parents=True)
        shutil.copyfile(source / "train.tar", objects / "cd")
    listed = SIZE - (source / "train.tar").stat().st_size
    free(SIZE + 2 * listed)
    require_space(workspace, str(source), "hpdv2")
    free(SIZE + 2 * listed - 1)
    with pytest.raises(DataError, match="its copies need"):
        require_space(workspace, str(source), "hpdv2")


def test_links_into_the_cache_take_no_space(workspace, source, free):
    config = workspace.path / ".dvc/config"
    config.write_text(config.read_text().replace("type = copy", "type = symlink"))
    free(2 * SIZE)
    require_space(workspace, str(source), "hpdv2")


def test_each_file_system_has_to_have_space_for_its_own_copies(tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")
    large, small = tmp_path / "large", tmp_path / "small"
    free = {large: 10, small: 1}
    status = Path.stat

    def on_its_own_disk(path, **options):
        found = status(path, **options)
        if path not in free:
            return found
        return type(found)((*found[:2], list(free).index(path), *found[3:]))

    monkeypatch.setattr(Path, "stat", on_its_own_disk)
    monkeypatch.setattr(data_space.shutil, "disk_usage", lambda path: usage._replace(free=free[path]))
    for path in free:
        path.mkdir()
    copies = [data_space.Copy("one", large / "a", 6), data_space.Copy("other", small / "b", 1)]
    data_space.require_fit("source", copies)
    copies.append(data_space.Copy("more", small / "c", 1))
    with pytest.raises(DataError, match=r"file system of .*small.*MB other \+ .*MB more\)"):
        data_space.require_fit("source", copies)


@pytest.mark.parametrize("format_name", ["pairs", "images", "prompts"])
def test_other_formats_need_the_size_of_their_files(workspace, tmp_path, free, format_name):
    source = tmp_path / "table.parquet"
    source.write_bytes(bytes(SIZE))
    free(3 * SIZE)
    require_space(workspace, str(source), format_name)
    free(3 * SIZE - 1)
    with pytest.raises(DataError, match="its copies need"):
        require_space(workspace, str(source), format_name)


@pytest.mark.s3
def test_a_source_in_a_bucket_is_downloaded_first_less_what_is_there_already(
    workspace, bucket, tmp_path, free, monkeypatch
):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    client, uri = boto3.client("s3"), f"s3://{bucket}/sets/mine"
    client.put_object(Bucket=bucket, Key="sets/mine/table.parquet", Body=bytes(SIZE))
    free(4 * SIZE - 1)
    with pytest.raises(DataError, match=r"2.0 MB the download \+ 2.0 MB in the workspace"):
        require_space(workspace, uri, "pairs")
    copy = data_versions.path_of_copy(uri)
    copy.mkdir(parents=True)
    (copy / "table.parquet.part").write_bytes(bytes(SIZE // 2))
    free(7 * SIZE // 2)
    require_space(workspace, uri, "pairs")
