import torch

from srpo_core.scorers.text_memory import TextMemory


class Tower:
    """A text tower that returns the length and the number of spaces of a text, and records its calls."""

    def __init__(self, device="cpu"):
        self.seen = []
        self.weight = torch.ones(2, requires_grad=True, device=device)

    def __call__(self, text):
        self.seen.append(text)
        return self.weight * torch.tensor([len(text), text.count(" ")], device=self.weight.device)


def test_rows_have_the_order_of_the_texts():
    rows = TextMemory().recall(["red apple", "cat", "red apple"], Tower(), "cpu")
    assert rows.tolist() == [[9, 1], [3, 0], [9, 1]]


def test_the_tower_runs_once_per_distinct_text():
    tower, memory = Tower(), TextMemory()
    for texts in (["a", "b", "a"], ["b"], ["c", "a"]):
        memory.recall(texts, tower, "cpu")
    assert tower.seen == ["a", "b", "c"]


def test_the_oldest_text_is_evicted_first():
    tower, memory = Tower(), TextMemory(capacity=2)
    memory.recall(["a", "b", "c"], tower, "cpu")
    memory.recall(["b", "c"], tower, "cpu")
    assert tower.seen == ["a", "b", "c"]
    memory.recall(["a"], tower, "cpu")
    assert tower.seen == ["a", "b", "c", "a"]


def test_a_call_with_more_texts_than_the_capacity_returns_all_of_them():
    rows = TextMemory(capacity=1).recall(["a", "bb", "ccc"], Tower(), "cpu")
    assert rows[:, 0].tolist() == [1, 2, 3]


def test_cached_features_have_no_gradient_and_cannot_be_changed_by_the_caller():
    memory = TextMemory()
    rows = memory.recall(["cat"], Tower(), "cpu")
    assert not rows.requires_grad
    rows.zero_()
    assert memory.recall(["cat"], Tower(), "cpu").tolist() == [[3, 0]]


def test_two_memories_share_no_texts():
    tower = Tower()
    TextMemory().recall(["a"], tower, "cpu")
    TextMemory().recall(["a"], tower, "cpu")
    assert tower.seen == ["a", "a"]


def test_cached_and_new_rows_are_on_the_same_device_after_a_move():
    memory = TextMemory()
    memory.recall(["before"], Tower(), "cpu")
    assert memory.recall(["before", "after"], Tower("meta"), "meta").device.type == "meta"
