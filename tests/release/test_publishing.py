"""Publishing: contents of a release, refused publications, withdrawals."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from srpo_core.errors import ArtifactError, ConfigError, GateError, StoreError
from srpo_core.release.aliases import move_alias, promote
from srpo_core.release.publishing import publish, withdraw
from srpo_core.release.references import resolve
from srpo_core.release.summary import describe, list_releases
from srpo_core.release.verify import verify
from srpo_core.runtime.costs import RunCost, StageCost, recorded_cost
from srpo_core.storage import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_version_is_the_name_and_twelve_digits_of_the_lock(release, reproduced):
    _, published = release
    digits = hashlib.sha256((reproduced / "dvc.lock").read_bytes()).hexdigest()[:12]
    assert published.version == f"tiny-{digits}"


def test_a_release_contains_pipeline_formats_evidence_and_inputs_to_reproduce_it(release):
    store, published = release
    names = set(store.manifest(published.version)["files"])
    assert names >= {
        "README.md",
        "decision.json",
        "dvc.lock",
        "dvc.yaml",
        "LICENSE",
        "NOTICE",
        "grid.png",
        "model_index.json",
        "params.yaml",
        "proof.json",
        "report.html",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tiny-bf16.safetensors",
        "tiny-fp8_e4m3fn.safetensors",
        "tiny-q8_0.gguf",
        "workflow-gguf.json",
        "workflow.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    on_disk = {
        str(path.relative_to(published.uri)) for path in Path(published.uri).rglob("*") if path.is_file()
    }
    assert on_disk == names | {"manifest.json"}


def test_the_report_of_a_release_has_the_table_of_its_formats(release, reproduced):
    store, published = release
    page = b"".join(store.read(published.version, "report.html")).decode()
    for name in json.loads((reproduced / "runs/quantize/proof.json").read_text())["formats"]:
        assert f'<td class="name">{name}</td>' in page
    assert "<table>" not in (reproduced / "runs/report/report.html").read_text()


def test_the_transformer_of_a_release_is_the_aligned_one_not_the_base(release, reproduced):
    _, published = release
    weights = "transformer/diffusion_pytorch_model.safetensors"
    ours = (Path(published.uri) / weights).read_bytes()
    assert ours == (reproduced / "runs/quantize/formats/bf16" / Path(weights).name).read_bytes()
    assert ours != (reproduced / "assets/tiny/family/base" / weights).read_bytes()


def test_the_manifest_records_hashes_revision_decision_and_proof(release, reproduced):
    store, published = release
    manifest = store.manifest(published.version)
    assert manifest["schema_version"] == 2
    for name, entry in manifest["files"].items():
        data = (Path(published.uri) / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=reproduced, capture_output=True, text=True, check=True
    )
    assert manifest["git"] == {"revision": head.stdout.strip(), "diff": None, "untracked": []}
    assert manifest["decision"]["passed"] is True
    assert manifest["formats"] == {
        "bf16": ["tiny-bf16.safetensors", "transformer/diffusion_pytorch_model.safetensors"],
        "fp8_e4m3fn": ["tiny-fp8_e4m3fn.safetensors"],
        "q8_0": ["tiny-q8_0.gguf"],
    }
    tensors = manifest["proof"]["formats"]["q8_0"]["tensors"]
    assert tensors["single_blocks.3.linear2.weight"][0] == "Q8_0"
    assert manifest["evaluation"]["means"]["aligned"]["judge_wanted"] == 0.31
    assert manifest["environment"]["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert manifest["environment"]["cores"] >= 1
    assert "cost" not in manifest
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created_at"])


def test_the_manifest_records_uncommitted_changes_and_untracked_files(project, store):
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# a remark\n")
    (project / "new.py").write_text("x = 1\n")
    git = store.manifest(publish(store, root=project).version)["git"]
    assert "+# a remark" in git["diff"]
    assert git["untracked"] == ["new.py"]


def test_the_content_of_an_untracked_file_is_never_published(project, store):
    (project / "credentials.json").write_text("a password\n")
    subprocess.run(["git", "add", "--all"], cwd=project, check=True)  # as a run's workspace does
    (project / "renamed.yaml").write_bytes((project / "params.yaml").read_bytes())
    manifest = store.manifest(publish(store, root=project).version)
    assert "a password" not in json.dumps(manifest)
    assert manifest["git"]["untracked"] == ["credentials.json", "renamed.yaml"]


def test_publishing_again_is_a_no_op_even_after_a_commit_or_a_new_comment(project, store):
    first = publish(store, root=project)
    before = store.manifest(first.version)
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# a remark\n")
    second = publish(store, root=project)
    assert (first.created, second.created) == (True, False)
    assert second.version == first.version
    assert store.manifest(first.version) == before
    assert len(store.alias("tiny/candidate")[0]["history"]) == 1


def test_a_changed_card_or_licence_gives_a_warning_and_no_new_version(project, store, caplog):
    first = publish(store, root=project)
    (project / "NOTICE").write_text("Other words.\n")
    path = project / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["release"]["base_model"] = "someone/else"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    again = publish(store, root=project)
    assert (again.version, again.created) == (first.version, False)
    assert "your current NOTICE, README.md, params.yaml differ from the published ones" in caplog.text
    assert "release.name" in caplog.text


def test_workflows_and_licences_of_any_name_are_not_part_of_the_content(project, store, monkeypatch):
    path = project / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    (project / "LICENSE").rename(project / "LICENSE.md")
    settings["release"]["license_files"] = ["LICENSE.md", "NOTICE"]
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    publish(store, root=project)
    (project / "LICENSE.md").write_text("Other words.\n")
    monkeypatch.setattr("srpo_core.release.publishing.workflow_text", lambda *_: "{}")
    assert publish(store, root=project).created is False


def test_the_history_of_an_alias_records_user_time_reason_and_previous_version(release):
    store, published = release
    value, _ = store.alias("tiny/candidate")
    assert value["version"] == published.version
    (step,) = value["history"]
    assert {key: step[key] for key in ("who", "why", "from", "to")} == {
        "who": "tester",
        "why": "first",
        "from": None,
        "to": published.version,
    }
    assert "T" in step["when"]


def test_a_refused_model_is_not_published(project, store):
    edit_json(project / "runs/gate/decision.json", passed=False, reason="the subject is lost.")
    with pytest.raises(GateError, match="the subject is lost"):
        publish(store, root=project)
    assert store.versions() == []


def test_a_refused_decision_that_was_edited_and_recorded_by_dvc_commit_is_not_published(
    project, store, record
):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("margin: 0.05", "margin: 0.5"))
    edit_json(project / "runs/gate/decision.json", passed=True, verdict="passed")
    record(project)
    with pytest.raises(GateError, match=r"says passed, but .* refuse the model: style_gained"):
        publish(store, root=project)
    assert store.versions() == []


@pytest.mark.parametrize(
    "path",
    [
        "runs/quantize/formats/bf16/diffusion_pytorch_model.safetensors",
        "runs/report/report.html",
        "runs/gate/decision.json",
        "runs/evaluate/figures.parquet",
        "runs/evaluate/summary.json",
        "runs/select/selection.json",
        "assets/tiny/family/base/vae/config.json",
    ],
)
def test_a_file_that_dvc_lock_does_not_record_is_not_published(project, store, path):
    with (project / path).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactError, match=r"differs from what dvc\.lock records: run 'dvc repro' first"):
        publish(store, root=project)
    assert store.versions() == []


def test_settings_that_were_changed_after_the_run_are_not_published(project, store):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("grid_prompts: ", "grid_prompts: 1"))
    with pytest.raises(
        ArtifactError, match=r"params\.yaml differs from the settings that stage report was run with"
    ):
        publish(store, root=project)


def test_a_setting_that_no_stage_reads_may_change_after_the_run(project, store):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("threads_per_worker: 1", "threads_per_worker: 2"))
    assert publish(store, root=project).created is True


def test_a_stage_that_ran_on_an_outdated_input_is_not_published(project, store):
    lock = project / "dvc.lock"
    text = lock.read_text()
    digest = re.search(r"path: runs/gate/decision.json\n.*\n\s+md5: (\w+)", text)[1]
    lock.write_text(text.replace(digest, "0" * 32, 1))
    with pytest.raises(ArtifactError, match=r"was not run with the latest runs/gate/decision\.json"):
        publish(store, root=project)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dvc.lock", r"dvc\.lock is missing in .*: run 'dvc repro' there first"),
        ("runs/gate/decision.json", r"decision\.json is missing in"),
        ("runs/report/grid.png", r"runs/report differs from what dvc\.lock records"),
        ("params.yaml", r"params\.yaml is missing"),
    ],
)
def test_a_missing_file_is_named(project, store, path, message):
    (project / path).unlink()
    with pytest.raises((ArtifactError, ConfigError), match=message):
        publish(store, root=project)


@pytest.mark.parametrize("text", [None, ""])
def test_without_a_licence_text_nothing_is_published(project, store, text):
    (project / "NOTICE").unlink()
    if text is not None:
        (project / "NOTICE").write_text(text)
    with pytest.raises(ArtifactError, match="names NOTICE, which is missing or empty: nothing is published"):
        publish(store, root=project)
    assert store.versions() == []


def test_a_store_that_ignores_conditions_is_refused_unless_the_settings_accept_it(
    project, store, monkeypatch, caplog
):
    monkeypatch.setattr(type(store), "ignored_conditions", lambda _: ["If-Match"])
    with pytest.raises(
        StoreError, match=r"does not honour conditional writes \(If-Match\).*unconditional_store: true"
    ):
        publish(store, root=project)
    assert store.versions() == []
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("unconditional_store: false", "unconditional_store: true"))
    assert publish(store, root=project).created is True
    assert "write from one process at a time" in caplog.text


def test_the_manifest_records_the_cost_of_the_run(project, store):
    train = StageCost(
        stage="train",
        wall_hours=1.5,
        device_hours=12,
        devices=8,
        kind="GPU",
        attempts=2,
        money={"USD": 30.0},
        priced=True,
        cached=False,
    )
    cost = RunCost(stages=(train, train.model_copy(update={"stage": "select", "cached": True})))
    published = publish(store, root=project, cost=cost)
    recorded = store.manifest(published.version)
    assert recorded_cost(recorded) == cost
    assert recorded["cost"]["total"]["money"] == {"USD": 60.0}
    assert recorded["cost"]["this_run"]["device_hours"] == 12
    shown = [line for line in describe(store, "candidate") if line.startswith("cost")]
    assert shown == [
        "cost     24.000 device hours, 60.00 USD in 2 stages; this run 12.000 device hours, 30.00 USD, the rest is of the "
        "cache (select)",
        "cost     train              1.5000 h on 8 GPUs, 12.0000 device hours, 30.00 USD, 2 attempts",
        "cost     select             1.5000 h on 8 GPUs, 12.0000 device hours, 30.00 USD, 2 attempts",
    ]


def test_the_grid_contains_the_workflow_in_its_comfyui_metadata(release):
    _, published = release
    with Image.open(Path(published.uri) / "grid.png") as image:
        graph, prompt = (json.loads(image.text[name]) for name in ("workflow", "prompt"))
    assert graph == json.loads((Path(published.uri) / "workflow.json").read_text())
    assert prompt["1"] == {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "tiny-bf16.safetensors", "weight_dtype": "default"},
    }


def test_a_damaged_lock_gives_a_one_line_error(project, store):
    (project / "dvc.lock").write_text("stages: [")
    with pytest.raises(ArtifactError, match=r"dvc\.lock is damaged") as caught:
        publish(store, root=project)
    assert "\n" not in str(caught.value)


def test_a_release_outside_a_git_checkout_has_no_revision(project, store, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    subprocess.run(["rm", "-r", str(project / ".git")], check=True)
    git = store.manifest(publish(store, root=project).version)["git"]
    assert git == {"revision": None, "diff": None, "untracked": None}


def test_a_publication_can_be_withdrawn(project, store):
    published = publish(store, root=project)
    withdraw(store, published)
    assert store.versions() == []
    value, _ = store.alias("tiny/candidate")
    assert value["version"] is None
    assert [step["to"] for step in value["history"]] == [published.version, None]
    with pytest.raises(StoreError, match="points to nothing"):
        resolve(store, "candidate")
    assert publish(store, root=project).created is True


def test_withdrawing_keeps_a_version_that_is_now_in_production(project, store, caplog):
    published = publish(store, root=project)
    promote(store, published.version)
    withdraw(store, published)
    assert store.versions() == [published.version]
    assert resolve(store, "production") == published.version
    assert f"kept {published.version}" in caplog.text


def test_withdrawing_a_publication_that_created_nothing_keeps_the_version(project, store):
    publish(store, root=project)
    again = publish(store, root=project)
    withdraw(store, again)
    assert store.versions() == [again.version]
    assert resolve(store, "candidate") == again.version


def test_withdrawing_leaves_an_alias_that_was_moved_again(project, store):
    first = publish(store, root=project)
    store.publish("tiny-0", {}, {"files": {}, "content": ""})
    move_alias(store, "tiny/candidate", "tiny-0", why="a later one")
    withdraw(store, first)
    assert store.versions() == ["tiny-0"]
    assert resolve(store, "candidate") == "tiny-0"


@pytest.mark.s3
def test_a_release_in_a_bucket_is_published_verified_and_listed(project, bucket):
    store = open_store(f"s3://{bucket}/team")
    published = publish(store, root=project)
    assert published.uri == f"s3://{bucket}/team/models/tiny/versions/{published.version}"
    assert publish(store, root=project).created is False
    verify(store, "candidate")
    (line,) = list_releases(store)
    assert (line.version, line.aliases) == (published.version, ("candidate",))


def test_a_secret_planted_in_every_place_reaches_neither_the_store_nor_a_message(
    project, tmp_path, monkeypatch, caplog
):
    secret = "pl/anted+SECRET0123456789"
    with (project / ".dvc/config").open("a") as config:
        config.write(
            f"['remote \"own\"']\n    url = https://me:{secret}@host/x\n    secret_access_key = {secret}\n"
        )
    for name in (".dvc/config.local", ".env", "notes.txt"):
        (project / name).write_text(f"password = {secret}\n")
    for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    store = open_store(str(tmp_path / "store"))
    with caplog.at_level("DEBUG", logger="srpo_core"):
        published = publish(store, root=project)
    monkeypatch.setenv("SRPO_STORE", f"s3://AKEY:{secret}@bucket")
    with pytest.raises(StoreError) as caught:
        open_store()
    git = store.manifest(published.version)["git"]
    assert "secret_access_key = ***" in git["diff"]
    assert {".env", "notes.txt"} <= set(git["untracked"])
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
    assert secret not in caplog.text + str(caught.value)


def test_a_publication_and_its_withdrawal_write_the_page_of_the_store(project, tmp_path):
    store = open_store(str(tmp_path / "store"))
    done = publish(store, root=project, who="tester")
    page = (tmp_path / "store/index.html").read_text()
    lineage = store.manifest(done.version)["lineage"]
    assert [one["name"] for one in lineage["rewards"]] == ["assets/tiny/family/reward"]
    recorded = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["quantize"]["deps"]
    (base,) = (entry["md5"] for entry in recorded if entry["path"] == "assets/tiny/family/base")
    assert lineage["base"] == {"name": "assets/tiny/family/base", "md5": base}
    for text in (f"assets/tiny/family/base {base[:12]}", "<dd>assets/tiny/family/reward</dd>"):
        assert text in page
    for name in ("grid.png", "report.html"):
        assert f'href="models/tiny/versions/{done.version}/{name}"' in page
    withdraw(store, done)
    assert f'id="{done.version}"' not in (tmp_path / "store/index.html").read_text()
