import subprocess
import sys
import textwrap

import pytest
import yaml

from srpo_core.errors import ArtifactError, SrpoError
from srpo_core.resume import fingerprint, resolve, resumable

DVC = {"stages": {"train": {"deps": ["${model.path}", "code.py"], "params": ["seed", "train"]}}}
PARAMS = {"seed": 0, "train": {"steps": 3}, "gate": {"margin": 1}, "model": {"path": "weights"}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.bin").write_bytes(b"1")
    (tmp_path / "code.py").write_text("x = 1\n")
    return tmp_path


def test_the_directory_goes_when_the_run_succeeds(project):
    with resumable("train") as directory:
        (directory / "step").write_text("1")
    assert not directory.exists()


def test_the_directory_stays_when_the_run_fails_and_the_next_run_finds_it(project):
    with pytest.raises(RuntimeError), resumable("train") as directory:
        (directory / "step").write_text("1")
        raise RuntimeError
    with resumable("train") as again:
        assert (again / "step").read_text() == "1"


def test_a_kill_while_the_directory_is_removed_leaves_nothing_to_go_on_from(project, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), resumable("train") as directory:
        (directory / "step").write_text("1")
        monkeypatch.setattr("shutil.rmtree", killed)
    monkeypatch.undo()
    monkeypatch.setenv("SRPO_HOME", str(project / "home"))
    monkeypatch.chdir(project)
    with resumable("train") as again:
        assert not (again / "step").exists()
    assert [path.name for path in (project / "home/resume").iterdir() if path.is_dir()] == []


def test_it_lies_outside_of_the_stages_outputs(project):
    with resumable("train") as directory:
        assert directory.is_relative_to(project / "home/resume")


@pytest.mark.parametrize("changed", ["setting", "input", "code"])
def test_another_setting_input_or_code_starts_anew(project, changed):
    before = fingerprint("train")
    if changed == "setting":
        (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": {"steps": 4}}))
    else:
        (project / {"input": "weights/a.bin", "code": "code.py"}[changed]).write_bytes(b"2")
    assert fingerprint("train") != before


def test_a_setting_of_another_stage_changes_nothing(project):
    before = fingerprint("train")
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "gate": {"margin": 2}}))
    assert fingerprint("train") == before


def test_a_missing_input_is_named(project):
    (project / "code.py").unlink()
    with pytest.raises(ArtifactError, match=r"code\.py is missing"):
        fingerprint("train")


def test_a_second_run_beside_the_first_is_refused_and_the_first_is_named(project):
    script = """
        import sys
        from srpo_core.resume import resumable
        with resumable("train"):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(SrpoError, match=f"running already .*process {first.pid}"), resumable("train"):
            pass
        first.kill()
    with resumable("train") as directory:
        assert directory.is_dir()


def test_templates_of_dvc_are_filled_from_the_settings():
    assert resolve("${model.path}/vae", PARAMS) == "weights/vae"
