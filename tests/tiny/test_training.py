import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn


@pytest.fixture
def training(recipe_module):
    return recipe_module("training")


@pytest.fixture
def spread(recipe_module):
    return recipe_module("spread")


@pytest.mark.parametrize("shape", [(24, 24), (16, 72), (200, 32)])
def test_orthogonalization_keeps_singular_vectors_and_makes_singular_values_near_one(training, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    core = left.T @ training.orthogonalized(matrix) @ right.T

    assert (core - core.diag().diag()).abs().max() < 1e-3
    assert core.diag().min() > 0.1  # a square random matrix has a singular value near 0
    assert core.diag().max() < 1.3
    assert core.diag().median() > 0.6


def test_a_step_of_muon_equals_that_of_torch_up_to_bfloat16(training):
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(24, 40)), nn.Parameter(torch.zeros(24, 40))
    theirs.data.copy_(ours.data)
    before = ours.detach().clone()
    optimizers = (
        training.Muon([ours], 0.02, 0.1),
        torch.optim.Muon([theirs], 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(24, 40)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()

    assert (ours - theirs).norm() < 0.02 * (ours - before).norm()


def test_muon_updates_a_convolution_kernel_as_a_matrix(training):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().reshape(8, 36).clone())
    kernel.grad = torch.randn(8, 4, 3, 3)
    matrix.grad = kernel.grad.reshape(8, 36).clone()

    training.Muon([kernel], 0.02, 0.0).step()
    training.Muon([matrix], 0.02, 0.0).step()

    assert torch.equal(kernel.reshape(8, 36), matrix)


def test_the_spread_over_seeds_is_minimum_mean_and_maximum_of_each_figure(spread):
    result = spread.spread({"0": {"top1": 0.9}, "1": {"top1": 1.0}, "2": {"top1": 0.8}})

    assert result == {"top1": {"least": 0.8, "mean": pytest.approx(0.9), "greatest": 1.0}}


def test_another_seed_shares_every_model_except_the_base(spread, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    for source in spread.SHARED.values():
        (tmp_path / "family" / source).mkdir(parents=True)
        (tmp_path / "family" / source / "config.json").write_text(source)
    (recipe / "params.yaml").write_text("seed: 0\nprocesses: 2\n")
    (recipe / "subjects.json").write_text(json.dumps({"train": [], "eval": []}))
    monkeypatch.chdir(recipe)

    place = spread.prepare(2)

    assert (place / "params.yaml").read_text() == "seed: 2\nprocesses: 2\n"
    copied = {path.parent.name: path.read_text() for path in place.glob("out/*/config.json")}
    assert copied == spread.SHARED
    assert place.parent == tmp_path  # next to the recipe, so that ../data is the same


STAGE_OF_A_STUB = """
import json, sys
from pathlib import Path
import yaml
name = sys.argv[0].rpartition("/")[2].removesuffix(".py")
seed = yaml.safe_load(Path("params.yaml").read_text())["seed"]
with open("figures/order", "a") as file:
    file.write(name + " ")
Path(f"figures/{name}.json").write_text(json.dumps({"top1_a": 0.9 + seed / 100, "pictures": 400}))
"""


def test_another_seed_runs_the_stages_of_the_recipe_only_once(spread, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe"
    for place in ("tiny_family", "figures"):
        (recipe / place).mkdir(parents=True)
    for source in spread.SHARED.values():
        (tmp_path / "family" / source).mkdir(parents=True)
    (recipe / "params.yaml").write_text("seed: 0\n")
    (recipe / "subjects.json").write_text("{}")
    (recipe / "figures/measure.json").write_text(json.dumps({"top1_a": 1.0, "pictures": 400}))
    for stage in spread.STAGES:
        (recipe / f"tiny_family/{stage}.py").write_text(STAGE_OF_A_STUB)
    monkeypatch.chdir(recipe)

    for seeds in (["2"], ["2", "4"], ["4"]):  # the figures of an earlier call are kept
        spread.main(seeds)

    written = json.loads((recipe / "figures/spread.json").read_text())
    assert list(written["per_seed"]) == ["0", "2", "4"]
    assert written["spread"]["top1_a"] == {
        "least": pytest.approx(0.92),
        "mean": pytest.approx((1 + 0.92 + 0.94) / 3),
        "greatest": 1.0,
    }
    orders = [path.read_text().split() for path in tmp_path.glob(".seed-*/figures/order")]
    assert orders == [list(spread.STAGES)] * 2


def test_figures_of_seeds_are_discarded_if_the_base_has_changed(spread, tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    written = {"per_seed": {"0": {"top1_a": 0.5}, "1": {"top1_a": 0.4}}}
    (tmp_path / "figures/spread.json").write_text(json.dumps(written))
    monkeypatch.chdir(tmp_path)
    assert spread.told_before("0", {"top1_a": 0.5}) == written["per_seed"]
    assert spread.told_before("0", {"top1_a": 0.9}) == {"0": {"top1_a": 0.9}}


@pytest.mark.parametrize("words", [[], ["0"], ["x"]], ids=["none", "that of the settings", "no number"])
def test_seeds_that_cannot_be_trained_are_rejected(spread, tmp_path, monkeypatch, capsys, words):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        spread.main(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


STEPS_OF_MUON = """
import torch
from torch import nn
from tiny_family.training import Muon
def steps():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in [(8, 12), (6, 3, 3, 3), (12, 4)]]
    optimizer = Muon(weights, 0.02, 0.01)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return [weight.detach() for weight in weights]
"""
IN_A_PROCESS = """
import sys
from torch import distributed
rank, meeting, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.save(steps(), target)
"""


def recipe_path(tiny):
    return os.pathsep.join([str(tiny / "recipe"), str(tiny.parents[1])])


def test_muon_on_two_processes_gives_exactly_the_steps_of_one(tiny, training, tmp_path):
    targets = [tmp_path / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                STEPS_OF_MUON + IN_A_PROCESS,
                str(rank),
                str(tmp_path / "meeting"),
                str(target),
            ],
            env={**os.environ, "PYTHONPATH": recipe_path(tiny)},
        )
        for rank, target in enumerate(targets)
    ]
    exec(STEPS_OF_MUON, alone := {})  # in this process
    expected = alone["steps"]()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for target in targets:
        assert all(torch.equal(mine, other) for mine, other in zip(torch.load(target), expected, strict=True))


DIGEST_OF_TOKENS = """
import hashlib
from tiny_family.base import tokenizers
from tiny_family.captions import CLIP_TOKENS, T5_TOKENS, token_ids
texts = ["tiger face", "3D. red apple", "Ink. hot beverage", "zorro"]
clip, t5 = tokenizers()
ids = [token_ids(clip, texts, CLIP_TOKENS), token_ids(t5, texts, T5_TOKENS)]
vocabularies = sorted(clip.get_vocab().items()), t5.backend_tokenizer.to_str()
digest = hashlib.sha256(repr((vocabularies, [part.tolist() for part in ids])).encode()).hexdigest()
"""


def test_two_processes_make_the_same_tokenizers(tiny, recipe_module, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-c", DIGEST_OF_TOKENS + "print(digest)"],
        cwd=tiny / "recipe",
        env={**os.environ, "PYTHONPATH": recipe_path(tiny)},
        capture_output=True,
        text=True,
        check=True,
    )
    monkeypatch.chdir(tiny / "recipe")
    exec(DIGEST_OF_TOKENS, here := {})
    assert done.stdout.splitlines()[-1] == here["digest"]


TRAINED = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from tiny_family import training

class Task:
    def __init__(self):
        self.module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        self.steps = int(os.environ.get("DIE_AFTER", "1000"))
    def is_hidden(self, name):
        return name == "1.weight"
    def loss(self, generator):
        self.steps -= 1
        if self.steps < 0:
            os.kill(os.getpid(), 9)
        x = torch.randn(8, 4, generator=generator)
        return (self.module(x) - x[:, :2]).square().mean()

def build(settings):
    training.SAVE_SECONDS = 0.0
    training.LOG_EVERY = 2
    return Task()

if __name__ == "__main__":
    plan = training.Plan("toy", 0, 12, 0.01, 0.5, 2, 2, 0.9, 1.0, 0.01)
    trained = training.train(build, {}, plan, [Path(__file__)])
    torch.save([value for value in trained.weights.values()], "weights.pt")
    print(trained.cpu_seconds > 0)
"""


def test_a_killed_and_resumed_training_gives_the_weights_of_an_uninterrupted_one(tiny, tmp_path):
    def run(place, **more):
        place.mkdir(exist_ok=True)
        (place / "toy.py").write_text(TRAINED)
        environment = {**os.environ, "PYTHONPATH": recipe_path(tiny), **more}
        return subprocess.run(
            [sys.executable, "toy.py"],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run(tmp_path / "whole").returncode == 0
    assert run(tmp_path / "killed", DIE_AFTER="7").returncode != 0
    (state,) = (tmp_path / "killed/.state").glob("toy-*/checkpoint.pt")
    assert 0 < torch.load(state)["step"] <= 7
    again = run(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert "goes on at step" in again.stderr
    whole, killed = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed"))
    assert all(torch.equal(one, other) for one, other in zip(whole, killed, strict=True))


@pytest.fixture
def fingerprint(training, tmp_path):
    """Return a function that computes the fingerprint of a toy stage with its own code, settings and data."""
    plan = training.Plan("toy", 0, 1, 0.01, 0.5, 2, 1, 0.9, 1.0, 0.01)

    def compute(code="def build(settings): ...", settings=None, data="one", alone=False):
        stage, read = tmp_path / "toy.py", tmp_path / "data/part/weights"
        stage.write_text(code)
        read.parent.mkdir(parents=True, exist_ok=True)
        read.write_text(data)
        spec = importlib.util.spec_from_file_location("__main__", stage)  # as under python -m
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return training._fingerprint(
            module.build, settings or {}, plan, [read if alone else tmp_path / "data"]
        )

    return compute


def test_training_resumes_only_with_the_same_code_settings_and_inputs(fingerprint):
    assert fingerprint() == fingerprint()
    others = [
        fingerprint(code="def build(settings): return 1"),
        fingerprint(settings={"a": 1}),
        fingerprint(data="two"),
    ]
    assert len({fingerprint(), *others}) == 4
    assert fingerprint(data="two", alone=True) != fingerprint(alone=True), (
        "an input may be a file or a directory"
    )


@pytest.mark.parametrize("guidance", ["0.5", "5.5", "nan"])
def test_a_guidance_scale_that_the_base_was_not_distilled_for_is_rejected(
    recipe_module, tiny, monkeypatch, capsys, guidance
):
    monkeypatch.chdir(tiny / "recipe")
    with pytest.raises(SystemExit, match="2"):
        recipe_module("guidance").main(["2", guidance])
    assert f"guidance {guidance}: the base was distilled for 1 to 5 (params.yaml)" in capsys.readouterr().err
