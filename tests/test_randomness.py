import torch

from srpo_core.randomness import epoch_index, keyed_integer, keyed_noise, keyed_order


def test_noise_depends_only_on_its_key():
    first = keyed_noise((3, 4), 0, "noise", 1, 2)
    torch.manual_seed(99)
    assert torch.equal(first, keyed_noise((3, 4), 0, "noise", 1, 2))
    for other in ((1, "noise", 1, 2), (0, "noise", 2, 1), (0, "select", 1, 2)):
        assert not torch.equal(first, keyed_noise((3, 4), *other))


def test_noise_is_standard_normal():
    noise = torch.stack([keyed_noise((100,), 0, "noise", step) for step in range(200)])
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    between = torch.corrcoef(noise)[~torch.eye(200, dtype=torch.bool)]
    assert abs(float(between.mean())) < 0.005


def test_integers_include_both_ends():
    drawn = {keyed_integer(5, 8, 0, step) for step in range(100)}
    assert drawn == {5, 6, 7, 8}


def test_an_order_is_a_permutation():
    assert sorted(keyed_order(50, 0, "prompts")) == list(range(50))
    assert keyed_order(50, 0, "prompts") != list(range(50))


def test_every_element_occurs_once_per_epoch_and_each_epoch_has_a_new_order():
    epochs = [[epoch_index(epoch * 20 + place, 20, 7) for place in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
