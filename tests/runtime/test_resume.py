import logging
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from srpo_core.config import MEMORY_ONLY, load_settings, patched
from srpo_core.errors import ArtifactError, SrpoError
from srpo_core.runtime.dvc_yaml import read_stages, value_at, without_keys
from srpo_core.runtime.resume import discard_recorded, fingerprint, key_of, register_external, resumable
from srpo_core.runtime.shared_files import Location

DVC = {
    "stages": {
        "embed": {"cmd": "true", "deps": ["${model.path}"], "outs": ["runs/embed"]},
        "train": {
            "cmd": "mkdir -p runs/train && echo 1 > runs/train/a",
            "deps": ["${model.path}", "code.py"],
            "params": ["seed", "train"],
            "outs": ["runs/train"],
        },
        "select": {"cmd": "true", "deps": ["runs/train"], "outs": ["runs/select"]},
    }
}
PARAMS = {
    "seed": 0,
    "train": {"steps": 3, "rate": 2.0e-5},
    "gate": {"margin": 1},
    "model": {"path": "weights"},
}

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
def done(project):
    """The resume directory of a stage that succeeded."""
    with resumable("train") as directory:
        (directory / "step").write_text("1")
    return directory


def record():
    """Run the stage with DVC, which writes dvc.lock."""
    for command in (["init", "--no-scm", "--quiet"], ["repro", "--quiet", "train"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)


def test_the_directory_is_kept_after_success_until_dvc_has_recorded_the_outputs(done):
    with resumable("train") as again:
        assert (again / "step").read_text() == "1"


def test_the_directory_is_removed_only_when_a_stage_that_reads_the_outputs_starts(done):
    discard_recorded("embed")
    assert done.exists()
    discard_recorded("select")
    assert not done.exists()
    assert [path.name for path in done.parent.iterdir() if path.is_dir()] == []


def test_the_directory_of_a_failed_run_is_not_removed(project):
    with pytest.raises(RuntimeError), resumable("train") as directory:
        raise RuntimeError
    discard_recorded("select")
    assert directory.exists()


def test_a_directory_locked_by_a_run_is_not_removed(done):
    with resumable("train"):
        discard_recorded("select")
        assert done.exists()


def test_external_files_are_deleted_with_the_directory(done, tmp_path):
    far = Location("memory://test-resume/train")
    (far / "a").write(b"1")
    register_external(done, far / "nothing", far)
    discard_recorded("select")
    assert not far.exists()


def test_a_forced_run_starts_at_step_0_once_dvc_has_recorded_the_outputs(done):
    record()
    with resumable("train") as again:
        assert not (again / "step").exists()


@pytest.mark.parametrize("changed", ["setting", "input", "code"])
def test_a_record_with_other_settings_inputs_or_code_is_ignored(project, changed):
    record()
    if changed == "setting":
        (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": {"steps": 4}}))
    else:
        (project / {"input": "weights/a.bin", "code": "code.py"}[changed]).write_bytes(b"x = 22\n")
    with resumable("train") as directory:
        (directory / "step").write_text("1")
    with resumable("train") as again:
        assert (again / "step").exists(), "DVC was killed before it recorded the result"


def test_the_next_run_finds_the_directory_of_a_failed_run(project):
    with pytest.raises(RuntimeError), resumable("train") as directory:
        (directory / "step").write_text("1")
        raise RuntimeError
    with resumable("train") as again:
        assert (again / "step").read_text() == "1"


def test_after_a_kill_during_removal_there_is_nothing_to_resume(done, project, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "shutil.rmtree", lambda path, **_: path.name.startswith(".") and path.exists() and killed()
        )
        discard_recorded("select")
    with resumable("train") as again:
        assert not (again / "step").exists()
    left = [path.name for path in (project / "home/resume").iterdir() if path.is_dir()]
    assert left == [again.name], "the next start finishes the removal"


def test_the_directory_is_outside_the_outputs_of_the_stage(project):
    with resumable("train") as directory:
        assert directory.is_relative_to(project / "home/resume")


@pytest.mark.parametrize("changed", ["setting", "input", "code"])
def test_another_setting_input_or_code_gives_another_directory(project, changed):
    before = fingerprint("train")
    if changed == "setting":
        (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": {"steps": 4}}))
    else:
        (project / {"input": "weights/a.bin", "code": "code.py"}[changed]).write_bytes(b"2")
    assert fingerprint("train") != before


def test_a_setting_of_another_stage_does_not_change_the_directory(project):
    before = fingerprint("train")
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "gate": {"margin": 2}}))
    assert fingerprint("train") == before


def test_a_missing_input_is_named(project):
    (project / "code.py").unlink()
    with pytest.raises(ArtifactError, match=r"code\.py is missing"):
        fingerprint("train")


def test_a_second_run_of_the_same_stage_is_refused_and_the_first_is_named(project):
    script = """
        import sys
        from srpo_core.runtime.resume import resumable
        with resumable("train"):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        (left,) = (path for path in (project / "home/resume").iterdir() if path.is_dir())
        gone = left.with_name(f".{left.name}.done")
        gone.mkdir()
        with pytest.raises(SrpoError, match=f"running already .*process {first.pid}"), resumable("train"):
            pass
        assert gone.exists(), "the second run must not touch a removal of the first"
        first.kill()
    with resumable("train") as directory:
        assert directory.is_dir()


def test_only_the_named_key_of_a_dotted_setting_changes_the_fingerprint(project):
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"]["train"]["params"] = ["train.steps"]
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    before = fingerprint("train")
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": {"steps": 3, "rate": 1.0}}))
    assert fingerprint("train") == before
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": {"steps": 4, "rate": 1.0}}))
    assert fingerprint("train") != before


def test_a_dvc_record_of_a_dotted_setting_and_a_package_is_recognized(project):
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"]["train"] |= {"params": ["train.rate"], "deps": ["${model.path}", "package"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (project / ".dvcignore").write_text("__pycache__\n")
    (project / "package/__pycache__").mkdir(parents=True)
    (project / "package/code.py").write_text("x = 1\n")
    with resumable("train") as directory:
        (directory / "step").write_text("1")
    record()
    (project / "package/__pycache__/code.pyc").write_bytes(b"compiled")
    with resumable("train") as again:
        assert not (again / "step").exists(), "DVC has recorded the result, so this run was forced"


def test_compiled_files_of_a_package_do_not_change_the_fingerprint(project):
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"]["train"]["deps"] = ["package"]
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (project / "package/__pycache__").mkdir(parents=True)
    (project / "package/code.py").write_text("x = 1\n")
    before = fingerprint("train")
    (project / "package/__pycache__/code.pyc").write_bytes(b"compiled")
    assert fingerprint("train") == before
    (project / "package/new.py").write_text("y = 1\n")
    assert fingerprint("train") != before


def test_a_key_names_the_given_settings_and_the_inputs_that_matter(project):
    """Another setting, such as the learning rate, does not change it."""
    before = key_of("train", {"seed": 0}, without={Path("code.py")})
    assert key_of("train", {"seed": 1}, without={Path("code.py")}) != before
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["rate"] = 1.0
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (project / "code.py").write_text("x = 2\n")
    assert key_of("train", {"seed": 0}, without={Path("code.py")}) == before
    assert key_of("train", {"seed": 0}, without=set()) != before
    (project / "weights/a.bin").write_bytes(b"22")
    assert key_of("train", {"seed": 0}, without={Path("code.py")}) != before


def change(project, **train):
    """Change settings of the part train of params.yaml."""
    path = project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(values | {"train": patched(values["train"], train)}))


def test_a_run_that_ran_out_of_memory_resumes_with_smaller_micro_batches(project, caplog):
    params = PARAMS | {"train": {"steps": 30, "micro_batch_size": 4, "compute": {"gather_rollout": True}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(RuntimeError), resumable("train") as directory:
        (directory / "step").write_text("15")
        raise RuntimeError("out of memory")
    change(project, micro_batch_size=1, compute={"gather_rollout": False})
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError), resumable("train") as again:
        assert (again / "step").read_text() == "15"
        raise RuntimeError
    assert [record.getMessage() for record in caplog.records] == [
        "stage train continues with train.micro_batch_size 1 instead of 4, "
        "train.compute.gather_rollout false instead of true"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO), resumable("train"):
        assert not caplog.records, "reported once"
    change(project, rate=1.0e-5)
    with resumable("train") as other:
        assert other != again, "a learning rate changes more than memory"


def test_a_recorded_run_starts_at_step_0_with_other_micro_batches_and_one_that_is_not_continues(project):
    """The figures of a recorded run are not those of the new setting, and DVC has them already."""
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"train": {"micro_batch_size": 4}}))
    with resumable("train") as directory:
        (directory / "step").write_text("30")
    record()
    change(project, micro_batch_size=1)
    with resumable("train") as again:
        assert again == directory
        assert not (again / "step").exists()
        (again / "step").write_text("30")
    with resumable("train") as again:
        assert (again / "step").exists(), "DVC was killed before it recorded the run with the new setting"


def test_the_hash_of_a_stage_has_the_settings_of_memory_unless_they_are_left_out(project):
    before = fingerprint("train"), fingerprint("train", without=MEMORY_ONLY)
    change(project, micro_batch_size=1)
    assert fingerprint("train") != before[0]
    assert fingerprint("train", without=MEMORY_ONLY) == before[1]


def test_only_settings_of_memory_share_a_directory_among_all_settings_of_training():
    """With the settings and the stages of the project; each setting of training is changed in turn."""
    tiny, stage = (
        load_settings(ROOT / "profiles/tiny.yaml").model_dump(mode="json"),
        read_stages(ROOT)["train"],
    )

    def named(settings):
        return without_keys(stage.watched(settings), MEMORY_ONLY)

    same = set()
    for key in leaves(tiny["train"], "train"):
        path, _, name = key.rpartition(".")
        settings = deepcopy(tiny)
        value_at(settings, path)[name] = "changed"
        if named(settings) == named(tiny):
            same.add(key)
    assert same == set(MEMORY_ONLY)


def leaves(settings, prefix):
    """Yield the dotted keys of all settings that are no part of others."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def test_a_finished_run_of_an_earlier_release_without_a_record_of_memory_starts_at_step_0(project):
    with resumable("train") as directory:
        (directory / "step").write_text("30")
    record()
    (directory / "memory.json").unlink()
    with resumable("train") as again:
        assert not (again / "step").exists()
