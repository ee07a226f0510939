import pytest
import torch


@pytest.fixture(scope="module")
def prepared_rollout(benchmark_named):
    return benchmark_named("prepared_rollout")


def test_both_rollouts_have_the_same_images_and_one_embeds_the_text_once(prepared_rollout, monkeypatch):
    embedded = []
    linear = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear,
        "forward",
        lambda layer, x: embedded.append(x.shape[-1] == 48) or linear(layer, x),  # the text's width
    )
    counts, latents = [], []
    for run in prepared_rollout.rollouts(
        prepared_rollout.Path(__file__).parents[2] / "benchmarks/specs/S", 2
    ):
        embedded.clear()
        latents.append(run())
        counts.append(sum(embedded))
    assert counts == [25, 1]
    assert latents[0].shape == (2, 16, 64)
    assert float((latents[0] - latents[1]).norm() / latents[0].norm()) < 1e-6
