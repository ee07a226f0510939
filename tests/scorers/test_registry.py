import pytest
import torch

from srpo_core.config import ScorerSettings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.scorers import SCORERS, load_judge, load_reward, load_scorer

TINY_PATHS = {"open_clip": "reward", "style_subject_judge": "judge"}


@pytest.fixture(params=sorted(SCORERS))
def settings(request, family):
    return ScorerSettings(scorer=request.param, path=str(family / TINY_PATHS[request.param]))


def test_every_entry_loads_from_the_tiny_family_and_offers_its_protocol(settings):
    entry, scorer = SCORERS[settings.scorer], load_scorer(settings)
    images = torch.rand(2, 3, 64, 64)
    assert entry.licence
    if entry.differentiable:
        assert scorer.encode_images(images).shape == scorer.encode_texts(["cat", "dog"]).shape
        assert isinstance(scorer.scale, float)
    else:
        assert scorer.style_probabilities(images).shape == (2, len(scorer.styles))
        assert scorer.subject_logits(images).shape == (2, len(scorer.subjects))
        assert scorer.features(images).ndim == 2


def test_only_a_differentiable_entry_serves_as_reward_and_only_another_as_judge(settings):
    right, wrong = (
        (load_reward, load_judge) if SCORERS[settings.scorer].differentiable else (load_judge, load_reward)
    )
    right(settings)
    with pytest.raises(ConfigError, match="cannot serve as"):
        wrong(settings)


def test_every_entry_names_weights_that_are_missing(settings, tmp_path):
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load_scorer(settings.model_copy(update={"path": str(tmp_path)}))


@pytest.mark.parametrize("load", [load_scorer, load_reward, load_judge])
def test_an_unknown_scorer_is_a_configuration_error_that_lists_the_known(load):
    with pytest.raises(ConfigError, match="known are open_clip, style_subject_judge"):
        load(ScorerSettings(scorer="hps_v3", path="nowhere"))


def test_the_registry_is_read_only():
    with pytest.raises(TypeError):
        SCORERS["mine"] = None
