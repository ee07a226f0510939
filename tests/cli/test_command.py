import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def srpo(*arguments, cwd=ROOT, **environment):
    """Run the command line as a user does."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "srpo_core", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fails_in_one_line(done, code):
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("srpo: error: ")
    return done.stderr


@pytest.fixture
def project(tmp_path):
    """A directory with settings alone."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return tmp_path


def test_help_names_every_command():
    done = srpo("--help")
    assert done.returncode == 0
    for command in [
        "align",
        "stage",
        "data",
        "report",
        "profile",
        "doctor",
        "plan",
        "fetch",
        "releases",
        "verify",
        "generate",
    ]:
        assert f" {command} " in done.stdout


def test_without_a_command_the_help_is_shown():
    assert srpo().stdout == srpo("--help").stdout


def test_an_unknown_command_is_one_line():
    assert "No such command 'fly'" in fails_in_one_line(srpo("fly"), 2)


def test_a_missing_argument_is_one_line():
    assert "see 'srpo draw --help'" in fails_in_one_line(srpo("generate"), 2)


def test_an_unknown_stage_lists_the_known_ones():
    assert "known are check_reward, embed, evaluate" in fails_in_one_line(srpo("stage", "fly"), 2)


def test_an_unknown_key_in_the_settings_is_named(project):
    with (project / "params.yaml").open("a") as file:
        file.write("speed: 3\n")
    assert "params.yaml: unknown key 'speed'" in fails_in_one_line(srpo("stage", "gate", cwd=project), 2)


def test_a_missing_key_in_the_settings_is_named(project):
    text = re.sub(r"(train:\n(?:.*\n)*?)  batch_size: .*\n", r"\1", (project / "params.yaml").read_text())
    (project / "params.yaml").write_text(text)
    assert "missing key 'train.batch_size'" in fails_in_one_line(srpo("stage", "train", cwd=project), 2)


def test_settings_that_are_not_yaml_are_named(project):
    (project / "params.yaml").write_text("seed: [0\n")
    assert "params.yaml is not YAML" in fails_in_one_line(srpo("stage", "train", cwd=project), 2)


def test_a_missing_output_names_the_stage_to_run(project):
    line = fails_in_one_line(srpo("stage", "gate", cwd=project), 1)
    assert "is missing: run 'dvc repro" in line


def test_debug_shows_the_trace(project):
    done = srpo("--debug", "stage", "gate", cwd=project)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_the_code_of_another_checkout_is_refused(project):
    (project / "srpo_core").mkdir()
    (project / "srpo_core/config.py").write_text("")
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from srpo_core.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(ROOT), "stage", "gate"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "has code of its own" in fails_in_one_line(done, 2)


def test_profiles_are_listed_and_printed():
    assert "tiny" in srpo("profile").stdout.split()
    assert srpo("profile", "tiny").stdout == (ROOT / "profiles/tiny.yaml").read_text()


def test_an_unknown_profile_lists_the_known_ones():
    assert "unknown profile 'giant': known are" in fails_in_one_line(srpo("profile", "giant"), 2)


def test_a_setting_without_a_value_shows_how_it_is_written():
    assert "write KEY=VALUE" in fails_in_one_line(srpo("align", "--set", "train.steps"), 2)


@pytest.mark.parametrize(
    ("change", "said"), [("train.steps=[", "is not a YAML value"), ("train.steps=", "no value")]
)
def test_a_setting_without_a_sound_value_is_one_line(change, said):
    assert said in fails_in_one_line(srpo("align", "--set", change), 2)


def test_the_doctor_sees_a_store_that_is_a_file(tmp_path):
    (tmp_path / "store").write_text("")
    done = srpo("doctor", SRPO_STORE=str(tmp_path / "store"))
    assert done.returncode == 1
    assert "is a file: point SRPO_STORE to a directory" in done.stdout


def test_an_unknown_setting_on_the_command_line_is_named():
    assert "unknown key 'train.stes'" in fails_in_one_line(srpo("align", "--set", "train.stes=3"), 2)


def test_the_doctor_names_what_is_missing(project):
    done = srpo("doctor", cwd=project, SRPO_STORE=str(project / "store"))
    assert done.returncode == 1
    assert "✗ weights   assets/tiny/family/base is missing, and models.lock has no such entry" in done.stdout
    assert "✗ packages  requirements.lock is missing" in done.stdout


def test_the_doctor_is_content_in_the_project(tmp_path):
    done = srpo("doctor", SRPO_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout


def test_an_unknown_release_is_one_line(tmp_path):
    line = fails_in_one_line(srpo("verify", "none-such", SRPO_STORE=str(tmp_path / "store")), 1)
    assert "none-such" in line
