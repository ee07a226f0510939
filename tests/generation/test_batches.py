"""Batches on the tiny family: some are kept, some regenerated, and Ray tasks give the same results."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from srpo_core.artifacts import sha256
from srpo_core.config import ControlWords, GenerateSettings, load_settings
from srpo_core.errors import ConfigError, DivergenceError
from srpo_core.generation import batches as module
from srpo_core.generation import tasks
from srpo_core.generation.batches import generate_batches
from srpo_core.generation.images import GeneratedImages, ImageSet, generate_and_measure
from srpo_core.generation.job import GenerationJob, fingerprint
from srpo_core.models import files_to_load, loading
from srpo_core.models.embeddings import read_embeddings
from srpo_core.runtime import digests
from srpo_core.runtime.shared_files import COMPLETE, Location
from srpo_core.scorers.metrics import MetricContext

ROOT = Path(__file__).resolve().parents[2]
METRICS = ["judge_wanted", "diversity", "saturation"]


def resources(workers=1):
    return load_settings(ROOT / "profiles/tiny.yaml").resources.model_copy(
        update={"generate_workers": workers}
    )


@pytest.fixture
def job(tiny_project, tmp_path, monkeypatch):
    """Five prompts with two seeds in three batches. Thread count as in a stage, because sums depend on it."""
    monkeypatch.chdir(tiny_project)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    prompts, styles, condition = read_embeddings("validation")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.resources.threads_per_worker)
    yield GenerationJob(
        "base",
        settings.model,
        None,
        ImageSet("evaluate", prompts, styles, condition, 2, 0),
        GenerateSettings(
            num_inference_steps=2,
            guidance_scale=3.5,
            batch_size=4,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        METRICS,
        MetricContext(settings.rewards, settings.judge, settings.control_words),
    )
    torch.set_num_threads(threads)


def pixels(batches):
    return torch.cat([generated.pixels for _, generated in batches])


def test_files_used_by_another_run_are_kept_until_it_releases_them(job):
    ours, theirs = generate_batches(job, resources()), generate_batches(job, resources())
    ours.discard()
    assert len(pixels(theirs)) == 10
    theirs.discard()
    assert list((module.home() / "resume").glob("generate-*")) == []


def test_tasks_without_a_gpu_raise_an_error_instead_of_waiting_for_one(job, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"resources.use_gpu is true and this machine has no GPU"):
        generate_batches(job, resources(2).model_copy(update={"use_gpu": True}))


@pytest.mark.parametrize(("use_gpu", "how"), [(True, "by tasks"), (False, "here")])
def test_the_last_missing_batch_is_generated_by_a_task_if_only_the_cluster_has_a_gpu(
    job, monkeypatch, use_gpu, how
):
    called = []
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tasks, "missing_files", lambda *_: [2])
    monkeypatch.setattr(tasks, "_generate_on_ray", lambda *_: called.append("by tasks"))
    monkeypatch.setattr(module, "generate_some", lambda *_: called.append("here"))
    generate_batches(job, resources(2).model_copy(update={"use_gpu": use_gpu}))
    assert called == [how]


def test_a_model_is_freed_before_the_next_one_is_loaded(job, monkeypatch):
    """It is freed without garbage collection, although diffusers' hooks keep it in a reference cycle."""
    held, honest = [], loading.load_base

    def watched(*arguments, **options):
        base = honest(*arguments, **options)
        held.append(weakref.ref(base.transformer))
        return base

    monkeypatch.setattr(loading, "load_base", watched)
    gc.disable()
    try:
        for name in ("base", "step 5"):
            generate_batches(replace(job, name=name), resources())
            assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()
    assert len(held) == 2


def test_the_batches_together_equal_the_set_generated_at_once_and_are_counted(job, reports):
    from srpo_core.models import load_base

    batches = generate_batches(job, resources())
    start = ("generate base", 0, 3)
    # a report that something ended is the one before it
    loaded = [start, ("load the model", None, None), start]
    assert reports == [*loaded, ("generate base", 1, 3), ("generate base", 2, 3), ("generate base", 3, 3)]
    assert job.num_batches == 3
    assert [len(part) for part, _ in batches] == [4, 4, 2]
    whole = generate_and_measure(
        load_base(job.model),
        "base",
        job.image_set,
        generate=job.generate,
        metrics=METRICS,
        context=job.context,
    )
    assert torch.equal(pixels(batches), torch.stack([image.pixels for image in whole]))
    for name, values in batches.figures().items():
        assert values.tolist() == pytest.approx([image.figures[name] for image in whole], abs=1e-6)
    directory = batches.directory
    assert directory.parent == module.home() / "resume"
    batches.discard()
    assert not directory.exists()


def test_an_interrupted_run_generates_only_missing_batches_and_gives_the_same_images(job, monkeypatch):
    first = pixels(generate_batches(job, resources()))
    batches = generate_batches(job, resources())
    (batches.directory / "00001.safetensors").unlink()
    generated = []
    original = module.generate_set

    def counted(base, name, image_set, **options):
        generated.append(list(image_set.prompts))
        return original(base, name, image_set, **options)

    monkeypatch.setattr(module, "generate_set", counted)
    assert torch.equal(pixels(generate_batches(job, resources())), first)
    assert generated == [list(job.image_set.prompts[2:4])]


def test_everything_that_determines_an_image_or_a_figure_changes_the_fingerprint(job, tmp_path):
    context = job.context
    changed = {
        "generate": GenerateSettings(
            num_inference_steps=3,
            guidance_scale=3.5,
            batch_size=4,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        "metrics": ["diversity"],
        "transformer": ROOT / "assets/tiny/family/base/transformer",
        "image_set": replace(job.image_set, seed=1),
        "context": replace(context, control_words=ControlWords.of(wanted=["3D"], unwanted=["Ink"])),
    }
    names = {fingerprint(replace(job, **{key: value})) for key, value in changed.items()}
    assert len(names | {fingerprint(job)}) == len(changed) + 1
    assert fingerprint(job) == fingerprint(replace(job))


def test_a_second_fingerprint_reads_none_of_the_weights(job, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    first, read = fingerprint(job), []
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or sha256(path))
    assert fingerprint(job) == first
    assert read, "small files are read"
    assert not [path for path in read if path.stat().st_size >= digests.LEAST_BYTES]


def test_text_encoders_are_neither_hashed_nor_needed(job, tmp_path, monkeypatch):
    from srpo_core.models import load_base

    honest = load_base(job.model)
    for file in files_to_load(job.model):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(file.read_bytes())
    before = fingerprint(job)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert {path.name for path in Path(job.model.path).iterdir()} == {
            "model_index.json",
            "scheduler",
            "transformer",
            "vae",
        }
        loaded = load_base(job.model)
    for name, weight in honest.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], weight)
    for file in files_to_load(job.model):
        content = file.read_bytes()
        # a changed weight, or JSON that means the same
        changed = bytes([content[-1] ^ 1]) if file.suffix == ".safetensors" else content[-1:] + b" "
        (tmp_path / file).write_bytes(content[:-1] + changed)
        copy = job.model.model_copy(update={"path": str(tmp_path / job.model.path)})
        assert fingerprint(replace(job, model=copy)) != before
        (tmp_path / file).write_bytes(file.read_bytes())


def test_a_model_that_generates_nan_leaves_no_batch(job, tmp_path):
    from srpo_core.models import load_transformer

    broken = load_transformer(job.model, Path(job.model.path) / "transformer")
    broken.proj_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(DivergenceError, match="step 5 generates NaN"):
        generate_batches(replace(job, name="step 5", transformer=tmp_path / "broken"), resources())


def test_images_are_generated_and_measured_on_the_device_of_the_resources(job, monkeypatch):
    seen = []

    def generated(base, name, image_set, *, metrics, context, **_):
        parts = {next(part.parameters()).device.type for part in (base.transformer, base.vae)}
        seen.append((name, parts, context.device.type))
        return GeneratedImages(torch.zeros(len(image_set), 3, 1, 1, dtype=torch.uint8), {})

    monkeypatch.setattr(tasks, "local_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(module, "generate_set", generated)
    trained = replace(job, name="step 5", transformer=ROOT / "assets/tiny/family/base/transformer")
    for one in (job, trained):
        generate_batches(one, resources())
    assert seen == [("base", {"meta"}, "meta")] * 3 + [("step 5", {"meta"}, "meta")] * 3


def test_a_task_on_another_machine_downloads_its_inputs_and_returns_the_batches(
    job, tiny_project, tmp_path, monkeypatch
):
    from safetensors.torch import load_file

    expected = pixels(generate_batches(job, resources()))
    monkeypatch.setenv("SRPO_SHARED", "memory://test-batches")
    anywhere = replace(job, transformer=ROOT / "assets/tiny/family/base/transformer")
    (tmp_path / "elsewhere").mkdir()
    with tasks.exchange_for(anywhere, tmp_path / "generate-abc") as (shared, exchange):
        monkeypatch.chdir(tmp_path / "elsewhere")
        tasks.generate_in_task(shared, exchange, [2, 0, 1], resources(), module.generate_some)
        assert Path.cwd() == tmp_path / "elsewhere"
        monkeypatch.chdir(tiny_project)
    generated = [load_file(path)["pixels"] for path in sorted((tmp_path / "generate-abc").iterdir())]
    assert torch.equal(torch.cat(generated), expected)
    location, own = exchange.own
    assert {Path(name).parts[0] for name in own} == {tasks.TRANSFORMER}
    assert not location.exists()
    assert not exchange.results.exists()


def test_base_and_scorers_are_shared_once_and_a_checkpoint_shares_its_own_weights_only(
    job, tmp_path, monkeypatch
):
    """Also by runs with other metrics; what a killed process has shared in part is shared again."""
    monkeypatch.setenv("SRPO_SHARED", "memory://test-shared-once")
    sent, honest = [], Location.upload
    monkeypatch.setattr(Location, "upload", lambda place, file: sent.append(file.name) or honest(place, file))
    with tasks.exchange_for(job, tmp_path / "generate-base") as (_, exchange):
        assert len(sent) == len(exchange.digests) > len(files_to_load(job.model))
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "assets/tiny/family/base/transformer", checkpoint)
    trained = replace(job, transformer=checkpoint, metrics=["saturation"])
    for name in ("step 5", "step 10"):
        sent.clear()
        with tasks.exchange_for(trained, tmp_path / f"generate-{name}") as (_, again):
            assert sorted(sent) == ["config.json", "diffusion_pytorch_model.safetensors"]
            assert again.inputs == exchange.inputs
            weights = [name for name in again.digests if name.endswith("model.safetensors")]
            assert [Path(name).parent.name for name in weights] == ["vae"], (
                "a task needs no weights of the base"
            )
    (again.inputs / COMPLETE).delete()
    sent.clear()
    with tasks.exchange_for(job, tmp_path / "generate-base"):
        assert len(sent) == len(exchange.digests)


@pytest.mark.pipeline
def test_ray_tasks_generate_the_same_images_and_figures_are_counted_and_raise_our_own_errors(
    job, tmp_path, reports, monkeypatch
):
    from srpo_core.models import load_transformer

    honest, asked = tasks._await_files, []

    def look(*given):
        ours = [one for one in psutil.Process().children(recursive=True) if one.name() == "raylet"]
        asked.extend("SRPO_PROGRESS" in one.environ() for one in ours)
        honest(*given)

    monkeypatch.setattr(tasks, "_await_files", look)
    alone = generate_batches(job, resources())
    expected, figures = pixels(alone), alone.figures()
    alone.discard()
    reports.clear()
    together = generate_batches(job, resources(2))
    assert reports[:2] == [("start Ray", None, None), ("generate base", 0, 3)]
    assert reports[-1] == ("generate base", 3, 3)
    assert asked
    assert not any(asked), "a task would report its own share"
    assert torch.equal(pixels(together), expected)
    for name, values in together.figures().items():
        assert torch.equal(values, figures[name]), name
    broken = load_transformer(job.model, Path(job.model.path) / "transformer")
    broken.proj_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(DivergenceError, match="step 5 generates NaN"):
        generate_batches(replace(job, name="step 5", transformer=tmp_path / "broken"), resources(2))
