"""The command line: exit codes and one-line errors.

`srpo` runs in the test's own process; `srpo_process` starts a new process, for tests of its start or end.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from attempts import record_attempt
from faulty_proxy import FaultyProxy, without
from wrong_files import POINTER

import srpo_core
from srpo_core.cli.app import OWN_PACKAGES, MaskingFormatter
from srpo_core.cli.main import main
from srpo_core.cli.options import parse_changes
from srpo_core.config import patched, read_values

ROOT = Path(__file__).parents[2]


@pytest.fixture
def srpo(monkeypatch, capsys):
    """A function that runs the command line as a user does, without a new process."""
    levels = {name: logging.getLogger(name).level for name in OWN_PACKAGES}
    # a stage process dies with its parent; the test process must not
    monkeypatch.setattr("srpo_core.runtime.processes.die_with_parent", lambda: None)

    def run(*arguments, cwd=ROOT, **environment):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
        capsys.readouterr()
        with (
            mock.patch.dict(os.environ, {"NO_COLOR": "1", **environment}),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, printed.out, printed.err)

    yield run
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def srpo_process(*arguments, cwd=ROOT):
    """Start the command line as a process."""
    return subprocess.run(
        [sys.executable, "-m", "srpo_core", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_line_error(done, code):
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("srpo: error: ")
    return done.stderr


@pytest.fixture
def project(tmp_path):
    """A directory that contains only the settings and the stage graph."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_help_names_every_command():
    done = srpo_process("--help")
    assert done.returncode == 0
    for command in [
        "align",
        "stage",
        "data",
        "report",
        "runs",
        "profile",
        "doctor",
        "plan",
        "fetch",
        "releases",
        "verify",
        "generate",
    ]:
        assert f" {command} " in done.stdout


def test_without_a_command_the_help_is_shown(srpo):
    assert srpo().stdout == srpo("--help").stdout


@pytest.mark.parametrize("before", [[], ["add"]])
def test_a_source_needs_no_command_and_options_may_stand_before_it(srpo, before):
    error = assert_one_line_error(srpo("data", *before, "--name", "emoji"), 2)
    assert "Missing argument 'source': see 'srpo data add --help'" in error
    assert "No such option: --nam" in assert_one_line_error(srpo("data", *before, "hpd/", "--nam", "x"), 2)


def test_data_without_a_source_shows_its_commands(srpo):
    done = srpo("data")
    assert done.returncode == 0
    assert done.stdout == srpo("data", "--help").stdout
    assert "add" in done.stdout


def test_the_help_lists_the_panels_in_the_order_of_use(srpo):
    text = srpo("--help").stdout
    places = [
        text.index(f"─ {panel} ─")
        for panel in ("Run", "Data", "Releases", "Production", "Settings and machine")
    ]
    assert places == sorted(places)


def test_the_version_is_printed(srpo):
    assert srpo("--version").stdout == f"srpo {srpo_core.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["a fox", "--seed", "3", "--output", "fox.png"], ["--help"]])
def test_the_old_command_draw_names_the_new_one_and_is_not_in_the_help(srpo, arguments):
    assert "'srpo draw' was renamed: use 'srpo generate'" in assert_one_line_error(
        srpo("draw", *arguments), 2
    )
    assert " draw " not in srpo("--help").stdout


def test_an_unknown_command_gives_a_one_line_error():
    assert "No such command 'fly'" in assert_one_line_error(srpo_process("fly"), 2)


def test_a_missing_argument_gives_a_one_line_error(srpo):
    assert "see 'srpo generate --help'" in assert_one_line_error(srpo("generate"), 2)


def test_an_unknown_stage_lists_the_known_ones(srpo):
    assert "known are check_reward, embed, evaluate" in assert_one_line_error(srpo("stage", "fly"), 2)


def test_an_unknown_key_in_the_settings_is_named(srpo, project):
    with (project / "params.yaml").open("a") as file:
        file.write("speed: 3\n")
    assert "params.yaml: unknown key 'speed'" in assert_one_line_error(srpo("stage", "gate", cwd=project), 2)


@pytest.mark.parametrize(
    ("old", "new"), [("draw", "generate"), ("resources.draw_workers", "resources.generate_workers")]
)
def test_an_old_key_in_the_settings_names_the_new_one(srpo, project, old, new):
    path = project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    *parts, last = old.split(".")
    part = values
    for name in parts:
        part = part[name]
    part[last] = part.pop(new.rpartition(".")[2])
    path.write_text(yaml.safe_dump(values))
    assert f"{old} is now {new}" in assert_one_line_error(srpo("stage", "gate", cwd=project), 2)


def test_an_old_key_on_the_command_line_names_the_new_one():
    line = assert_one_line_error(srpo_process("align", "--set", "draw.steps=3"), 2)
    assert "draw.steps is now generate.num_inference_steps" in line


def test_a_missing_key_in_the_settings_is_named(srpo, project):
    text = re.sub(r"(train:\n(?:.*\n)*?)  batch_size: .*\n", r"\1", (project / "params.yaml").read_text())
    (project / "params.yaml").write_text(text)
    assert "missing key 'train.batch_size'" in assert_one_line_error(srpo("stage", "train", cwd=project), 2)


def test_a_settings_file_that_is_not_yaml_is_named(srpo, project):
    (project / "params.yaml").write_text("seed: [0\n")
    assert "params.yaml is not YAML" in assert_one_line_error(srpo("stage", "train", cwd=project), 2)


def test_a_missing_output_names_the_stage_to_run(srpo, project):
    line = assert_one_line_error(srpo("stage", "gate", cwd=project), 1)
    assert "is missing: run 'dvc repro" in line


def test_the_first_stage_of_dvc_repro_refuses_settings_invalid_for_later_stages(srpo, project):
    """Without this early check the error would appear only after training."""
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["quantize"]["gain"] = "beauty"
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    line = assert_one_line_error(srpo("stage", "ingest", cwd=project), 2)
    assert "quantize.gain asks for 'beauty', which evaluate does not measure" in line
    assert not (project / "runs").exists()


def test_debug_shows_the_traceback(project):
    done = srpo_process("--debug", "stage", "gate", cwd=project)
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
    assert "contains srpo_core/, but" in assert_one_line_error(done, 2)


def test_profiles_are_listed_and_printed(srpo):
    assert "tiny" in srpo("profile").stdout.split()
    assert srpo("profile", "tiny").stdout == (ROOT / "profiles/tiny.yaml").read_text()


def test_an_unknown_profile_lists_the_known_ones(srpo):
    assert "unknown profile 'giant': known are" in assert_one_line_error(srpo("profile", "giant"), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set seed: no value; write KEY=VALUE, for instance --set train.steps=20"),
        ("train.steps=", "no value after '='; write KEY=VALUE"),
        ("=5", "the key '' has an empty part or a blank; write KEY=VALUE"),
        ("train..steps=5", "the key 'train..steps' has an empty part"),
        ("train.steps=[1", "'[1' is not a YAML value (the value is not YAML: at the end: did not find"),
        ("train.steps=!!int ''", "(the value, line 1: the tag !!int is not supported, only !!str"),
        ("train.steps=\udcff", "line 1: a byte that is not UTF-8"),
        ("resources={a: 1, a: 2}", "the key 'a' is there twice"),
        ("rewards[0].path=x", "set the whole list, for instance --set 'rewards=[...]'"),
        ("train.stes=3", "unknown key 'train.stes' (known: train.steps)"),
        ("steps=3", "unknown key 'steps' (known: train.steps"),
        ("train.rollout.x.y=3", "unknown key 'train.rollout.x'"),
    ],
)
def test_a_setting_of_the_wrong_form_or_name_gives_one_line_with_the_right_one(srpo, change, message):
    assert message in assert_one_line_error(srpo("align", "--set", change), 2)


def test_align_names_weights_that_are_not_here_before_a_run_starts(srpo):
    line = assert_one_line_error(srpo("align", "--set", "model.path=someone/FLUX.1-dev"), 2)
    assert "model.path: someone/FLUX.1-dev is not here; if it is a repository of the hub, download it" in line
    assert "hf download someone/FLUX.1-dev --local-dir models/FLUX.1-dev" in line


def test_the_doctor_names_a_pointer_in_place_of_the_weights_and_goes_on_to_the_disk(srpo, project):
    family = "assets/tiny/family"
    shutil.copytree(ROOT / family, project / family)
    weights = project / family / "base/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(POINTER)
    done = srpo("doctor", cwd=project, SRPO_STORE=str(project / "store"))
    assert done.returncode == 1
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert ["✗", "weights"] in [line[:2] for line in lines]
    assert "diffusion_pytorch_model.safetensors: this is a Git LFS pointer: run git lfs pull" in done.stdout
    assert "disk" in [line[1] for line in lines]


def test_quantize_names_what_is_no_checkpoint_on_one_line(srpo, tmp_path):
    (tmp_path / "flux.gguf").write_bytes(b"GGUF" + bytes(20))
    for source, message in (
        (
            "black-forest-labs/FLUX.1-dev",
            "if it is a repository of the hub, download it and give the directory",
        ),
        ("https://huggingface.co/x.safetensors", "https://huggingface.co/x.safetensors is a URL: download"),
        ("flux.gguf", "flux.gguf is no intact GGUF file (version 0; known are 2 and 3"),
    ):
        done = srpo("quantize", source, "--format", "q8_0", "--out", "out", cwd=tmp_path)
        assert message in assert_one_line_error(done, 2)


def test_the_option_set_without_anything_gives_one_line(srpo):
    assert "Option '--set' requires an argument" in assert_one_line_error(srpo("align", "--set"), 2)


def test_a_setting_can_be_switched_off_by_null():
    tiny = read_values(ROOT / "profiles/tiny.yaml")
    assert patched(tiny, parse_changes(["train.early_stop=null"]))["train"]["early_stop"] is None
    beside = patched(tiny, parse_changes(["train.steps=3", "train.early_stop=null", "train.batch_size=1"]))[
        "train"
    ]
    assert (beside["early_stop"], beside["steps"], beside["batch_size"]) == (None, 3, 1)
    assert patched(tiny, parse_changes(["train.early_stop.alpha=0.1"]))["train"]["early_stop"]["alpha"] == 0.1


def test_the_doctor_reports_a_store_that_is_a_file(srpo, tmp_path):
    (tmp_path / "store").write_text("")
    done = srpo("doctor", SRPO_STORE=str(tmp_path / "store"))
    assert done.returncode == 1
    assert "is a file: point SRPO_STORE to a directory" in done.stdout


def test_the_doctor_lists_what_is_missing(srpo, project):
    done = srpo("doctor", cwd=project, SRPO_STORE=str(project / "store"))
    assert done.returncode == 1
    assert "✗ weights   assets/tiny/family/base is missing: check the path" in done.stdout
    assert "✗ packages  requirements.lock is missing" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text + "seed: 1\n", r"params\.yaml, line \d+: the key 'seed' is there twice"),
        (lambda text: text + "seeds: 1\n", r"params\.yaml: unknown key 'seeds'"),
        (lambda _: None, r"params\.yaml is missing"),
    ],
    ids=["a doubled key", "an unknown setting", "no file"],
)
def test_the_doctor_finds_settings_that_cannot_be_read_and_goes_on_to_the_machine(
    srpo, project, spoil, message
):
    params = project / "params.yaml"
    spoiled = spoil(params.read_text(encoding="utf-8"))
    params.unlink()
    if spoiled:
        params.write_text(spoiled, encoding="utf-8")
    done = srpo("doctor", cwd=project, SRPO_STORE=str(project / "store"))
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    (settings,) = [line for line in lines if line[1] == "settings"]
    assert settings[0] == "✗"
    assert re.match(message, settings[2])
    assert settings[2].endswith("(not checked without: weights, data, disk, store, devices)")
    found = {line[1] for line in lines}
    assert {"python", "packages", "checkout", "home", "temporary", "proxy", "dvc"} <= found
    assert not {"weights", "data", "disk", "store", "devices"} & found


def test_the_doctor_checks_settings_that_are_given_on_the_command_line(srpo, project):
    changes = ("--set", "ingest.source=data/mine", "--set", "model.path=models/mine")
    done = srpo("doctor", *changes, cwd=project, SRPO_STORE=str(project / "store"))
    assert done.returncode == 1
    assert "✗ weights   models/mine is missing" in done.stdout
    assert "data/mine" in done.stdout
    done = srpo("doctor", "--set", "train.stes=3", cwd=project, SRPO_STORE=str(project / "store"))
    assert "unknown key 'train.stes' (known: train.steps)" in done.stdout.splitlines()[0]
    assert_one_line_error(srpo("doctor", "--set", "train.steps"), 2)
    assert "unknown profile 'none'" in assert_one_line_error(srpo("doctor", "--profile", "none"), 2)


def test_the_doctor_reports_no_problem_in_the_project(srpo, tmp_path):
    done = srpo("doctor", SRPO_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout


def test_an_unknown_release_gives_a_one_line_error(srpo, tmp_path):
    line = assert_one_line_error(srpo("verify", "none-such", SRPO_STORE=str(tmp_path / "store")), 1)
    assert "none-such" in line


def test_neither_an_error_nor_a_log_record_prints_credentials(srpo, tmp_path, monkeypatch):
    done = srpo("releases", SRPO_STORE="s3://AKEY:plantedSECRET@bucket")
    assert_one_line_error(done, 1)
    assert "s3://***@bucket" in done.stderr
    assert "plantedSECRET" not in done.stdout + done.stderr
    formatter = MaskingFormatter("%(message)s")
    error = OSError("https://me:plantedSECRET@host is unreachable")
    record = logging.LogRecord(
        "srpo_core", logging.INFO, "", 0, "to %s", ("s3://a:plantedSECRET@b",), (OSError, error, None)
    )
    text = formatter.format(record)
    assert "to s3://***@b" in text
    assert "https://***@host is unreachable" in text
    assert "plantedSECRET" not in text


@pytest.mark.s3
def test_the_doctor_reports_a_store_that_does_not_honour_conditions(srpo, bucket, s3_environment):
    proxy = FaultyProxy(s3_environment, without("if-match"))
    try:
        done = srpo("doctor", SRPO_STORE=f"s3://{bucket}/p", AWS_ENDPOINT_URL=proxy.url)
    finally:
        proxy.close()
    assert done.returncode == 1
    assert re.search(
        r"^✗ store +the store s3://\S+/p does not honour conditional writes \(If-Match\)",
        done.stdout,
        re.MULTILINE,
    )


def test_the_doctor_leaves_no_file_in_a_store(srpo, tmp_path):
    (tmp_path / "store").mkdir()
    srpo("doctor", SRPO_STORE=str(tmp_path / "store"))
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == [".incoming.lock"]
    srpo("doctor", SRPO_STORE=str(tmp_path / "none/store"))
    assert not (tmp_path / "none").exists()


def test_a_stage_beyond_the_limit_of_the_cost_is_not_started(srpo, project, monkeypatch):
    """Stage gate needs no plan; with a limit that is high enough it runs into its missing input."""
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    gate = graph["stages"]["gate"]
    stages = {
        "ingest": {"cmd": "true", "deps": ["data"], "params": ["seed"]},
        "gate": {**gate, "deps": ["data"]},
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (project / "data").write_text("one")
    hardware = {"tflops": 0.1, "float32_tflops": 0.05, "mfu": 0.5}

    def gate_with(**resources):
        patch = {"resources": {"hardware": hardware, "price": 10, **resources}}
        values = patched(read_values(ROOT / "params.yaml"), patch)
        (project / "params.yaml").write_text(yaml.safe_dump(values))
        return srpo("stage", "gate", cwd=project)

    gate_with()
    monkeypatch.chdir(project)
    record_attempt("ingest", 3, price=10)
    error = assert_one_line_error(gate_with(max_cost=29), 3)
    assert "gate is not started: this run has cost 30.00 USD" in error
    assert re.search(
        r"--set resources\.max_cost=30(\.\d+)? or more", error
    )  # the first attempt took some time
    assert "is missing" in assert_one_line_error(gate_with(max_cost=31), 1)
    error = assert_one_line_error(gate_with(max_cost=29, price="null", hardware="null"), 2)
    assert "resources: max_cost 29 needs price and hardware" in error
