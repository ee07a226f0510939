import shutil
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from ingest_arguments import ingest_arguments

from srpo_core.config import load_settings
from srpo_core.data.tables import Prompt, read_pairs, read_prompts
from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import encode_prompts
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.stages import embed, ingest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("ingested")
    (root / "assets").symlink_to(ROOT / "assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        ingest.run(**ingest_arguments(train_rollout_source="offline"))
    return root


@pytest.fixture
def project(ingested, tmp_path, monkeypatch):
    shutil.copytree(ingested, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def run(**changes):
    """Run the stage on the tiny preset; `changes` replaces arguments of its `run`."""
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    arguments = {
        "seed": settings.seed,
        "model": settings.model,
        "train_steps": settings.train.steps,
        "train_batch_size": settings.train.batch_size,
        "train_rollout_source": settings.train.rollout.source,
        "train_rollout_cached_num_prompts": None,
        "train_early_stop": settings.train.early_stop,
        "select_num_prompts": settings.select.num_prompts,
        "evaluate_num_prompts": settings.evaluate.num_prompts,
        "resources": settings.resources,
    }
    assert set(changes) <= set(arguments)
    embed.run(**{**arguments, **changes})


def prompts(*styles):
    return [Prompt(number, f"prompt {number}", "test", style) for number, style in enumerate(styles)]


def test_each_split_contains_as_many_prompts_as_the_run_uses_and_their_batches_are_counted(project, reports):
    run(train_steps=2, train_batch_size=5, select_num_prompts=3, evaluate_num_prompts=4)
    watched = load_settings(ROOT / "profiles/tiny.yaml").train.early_stop
    size = load_settings(ROOT / "profiles/tiny.yaml").resources.encode_batch_size
    total = -(-(2 * 5 + 3 + 4 + (watched.num_prompts if watched else 0)) // size)
    assert reports[0] == ("load the text encoders", None, None)
    assert reports[1:] == [("encode batch", done, total) for done in range(total + 1)]
    sizes = {split: len(read_embeddings(split)[0]) for split in ("train", "validation", "alarm", "test")}
    assert sizes == {"train": 10, "validation": 3, "alarm": 16, "test": 4}


def test_cached_rollouts_can_limit_the_training_prompts_and_other_sources_ignore_the_limit(project):
    small = {"train_steps": 2, "train_batch_size": 5, "select_num_prompts": 1, "evaluate_num_prompts": 1}
    sizes = []
    for source, limit in (("cached", 4), ("cached", None), ("cached", 11), ("online", 4)):
        run(**small, train_rollout_source=source, train_rollout_cached_num_prompts=limit)
        sizes.append(len(read_embeddings("train")[0]))
    assert sizes == [4, 10, 10, 10]


def test_early_stop_has_validation_prompts_whatever_select_uses_and_none_if_it_is_off(project):
    small = {"train_steps": 1, "train_batch_size": 2, "evaluate_num_prompts": 2}
    contents = []
    for prompts in (1, 5):
        run(**small, select_num_prompts=prompts)
        contents.append((project / "runs/embed/alarm.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert set(read_embeddings("alarm")[0]) <= {prompt.text for prompt in read_prompts("validation")}
    run(**small, select_num_prompts=1, train_early_stop=None)
    assert read_embeddings("alarm")[0] == []


def test_all_prompts_are_used_in_order_if_there_are_fewer_than_requested(project):
    run()
    for split in ("train", "test"):
        assert read_embeddings(split)[0] == [prompt.text for prompt in read_prompts(split)]


def test_every_row_is_the_embedding_of_its_own_prompt(project):
    run(train_steps=1, train_batch_size=3, select_num_prompts=2, evaluate_num_prompts=2)
    model = load_settings(ROOT / "profiles/tiny.yaml").model
    for split in ("train", "validation", "test"):
        texts, _, condition = read_embeddings(split)
        alone = encode_prompts(model, texts[-1:], batch_size=1)
        assert condition.tensors.keys() == alone.tensors.keys()
        for name, tensor in alone.tensors.items():
            assert torch.allclose(condition.tensors[name][-1:], tensor, atol=1e-5)


def test_bfloat16_embeddings_are_the_rounded_float32_ones_and_few_batches_are_in_memory(project, monkeypatch):
    small = {"train_steps": 2, "train_batch_size": 6, "select_num_prompts": 3, "evaluate_num_prompts": 5}
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    small["resources"] = settings.resources.model_copy(update={"encode_batch_size": 4})
    run(**small)
    splits = ("train", "validation", "alarm", "test")
    exact = {split: read_embeddings(split)[2].tensors for split in splits}
    honest, alive, most = embed.encode_prompt_batches, [], []

    def watched(*arguments, **options):
        for batch in honest(*arguments, **options):
            alive.extend(weakref.ref(tensor) for tensor in batch.tensors.values())
            most.append(sum(one() is not None for one in alive) / len(batch.tensors))
            yield batch

    monkeypatch.setattr(embed, "encode_prompt_batches", watched)
    run(**small, model=settings.model.model_copy(update={"embeddings": "bfloat16"}))
    assert len(most) == 9
    assert max(most) <= 3, "the first one, the one before, and the new one"
    for split in splits:
        for name, tensor in read_embeddings(split)[2].tensors.items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, exact[split][name].bfloat16())


def test_the_splits_share_no_prompt(project):
    run()
    splits = [set(read_embeddings(split)[0]) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_chosen_prompts_are_balanced_over_styles():
    chosen = embed.choose_balanced(prompts(*["photo"] * 30, *["anime"] * 5, *["paint"] * 5), 12, 0)
    assert Counter(prompt.style for prompt in chosen) == {"photo": 4, "anime": 4, "paint": 4}


def test_chosen_prompts_keep_the_order_of_the_data_and_depend_on_the_seed():
    given = prompts(*["photo"] * 50)
    first, again, other = (embed.choose_balanced(given, 10, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [prompt.prompt_id for prompt in first] == sorted(prompt.prompt_id for prompt in first)


def test_real_images_are_embedded_reproducibly_and_only_if_used(project):
    small = {
        "train_steps": 1,
        "train_batch_size": 9,
        "select_num_prompts": 1,
        "evaluate_num_prompts": 1,
    }
    run(**small)
    with pytest.raises(ArtifactError, match="run 'dvc repro --force embed'"):
        read_latents("train")
    contents = []
    for _ in range(2):
        run(**small, train_rollout_source="offline")
        contents.append((project / "runs/embed/train.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert len(read_latents("train")) == len(read_embeddings("train")[0]) == 9


def test_the_real_image_of_a_prompt_is_the_preferred_one_of_its_first_pair(project):
    prompts = [prompt.text for prompt in read_prompts("train")][:5]
    pairs = read_pairs("train")
    firsts = [next(pair for pair in pairs if pair.prompt == prompt) for prompt in prompts]
    assert embed.preferred_images(prompts) == [pair.preferred for pair in firsts]
    with pytest.raises(DataError, match=r"no preferred image of 'a moose' \(1 of 2 prompts have none\)"):
        embed.preferred_images([prompts[0], "a moose"])


def test_missing_prompts_name_the_stage_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="run 'dvc repro ingest' first"):
        run()
