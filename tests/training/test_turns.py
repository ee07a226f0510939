import pytest

from srpo_core.training.turns import own_turns


@pytest.mark.parametrize(("count", "world"), [(4, 1), (4, 2), (5, 2), (4, 32), (33, 32), (1, 3)])
def test_every_rank_has_equally_many_turns_and_together_they_have_every_image_in_order(count, world):
    ranks = [own_turns(count, rank, world) for rank in range(world)]
    assert {len(own) for own in ranks} == {-(-count // world)}
    joined = [image for turn in zip(*ranks, strict=True) for image in turn]
    assert joined[:count] == list(range(count))
    assert set(joined) == set(range(count)), "what is generated twice is an image of the set"
