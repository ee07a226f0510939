import torch

from srpo_core.scorers.text_memory import TextMemory


class Tower:
    """Encodes a text as its length and its number of blanks, and counts."""

    def __init__(self, device="cpu"):
        self.seen = []
        self.weight = torch.ones(2, requires_grad=True, device=device)

    def __call__(self, text):
        self.seen.append(text)
        return self.weight * torch.tensor([len(text), text.count(" ")], device=self.weight.device)


def test_rows_stand_in_the_order_of_the_texts():
    rows = TextMemory().recall(["red apple", "cat", "red apple"], Tower(), "cpu")
    assert rows.tolist() == [[9, 1], [3, 0], [9, 1]]


def test_the_tower_runs_once_per_distinct_text():
    tower, memory = Tower(), TextMemory()
    for texts in (["a", "b", "a"], ["b"], ["c", "a"]):
        memory.recall(texts, tower, "cpu")
    assert tower.seen == ["a", "b", "c"]


def test_the_oldest_text_is_forgotten_first():
    tower, memory = Tower(), TextMemory(capacity=2)
    memory.recall(["a", "b", "c"], tower, "cpu")
    memory.recall(["b", "c"], tower, "cpu")
    assert tower.seen == ["a", "b", "c"]
    memory.recall(["a"], tower, "cpu")
    assert tower.seen == ["a", "b", "c", "a"]


def test_more_texts_at_once_than_it_holds_are_all_given():
    rows = TextMemory(capacity=1).recall(["a", "bb", "ccc"], Tower(), "cpu")
    assert rows[:, 0].tolist() == [1, 2, 3]


def test_what_is_kept_has_no_gradient_and_cannot_be_changed_from_outside():
    memory = TextMemory()
    rows = memory.recall(["cat"], Tower(), "cpu")
    assert not rows.requires_grad
    rows.zero_()
    assert memory.recall(["cat"], Tower(), "cpu").tolist() == [[3, 0]]


def test_two_memories_know_nothing_of_each_other():
    tower = Tower()
    TextMemory().recall(["a"], tower, "cpu")
    TextMemory().recall(["a"], tower, "cpu")
    assert tower.seen == ["a", "a"]


def test_rows_from_before_and_after_a_move_come_on_one_device():
    memory = TextMemory()
    memory.recall(["before"], Tower(), "cpu")
    assert memory.recall(["before", "after"], Tower("meta"), "meta").device.type == "meta"
