"""A base, a reward and batches that are small enough to compute a method's result by hand."""

from contextlib import nullcontext

import torch
from torch.nn.functional import normalize

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.method import TrainBatch
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws

SHAPE = (2, 4, 3)
STEPS = 5


class Linear:
    """A base whose velocity is a matrix times the latents, and whose image is the latents."""

    def __init__(self):
        torch.manual_seed(0)
        self.transformer = torch.nn.Linear(3, 3, bias=False).double()
        self.calls = []

    def velocity(self, latents, time, guidance, condition):
        self.calls.append((torch.is_grad_enabled(), len(latents)))
        return self.transformer(latents) * (1 + time[:, None, None])

    def gathered(self):
        return nullcontext()

    def prepared(self, condition, *, times, guidance):
        return nullcontext()

    def decode(self, latents):
        return 0.5 + 0.1 * latents.transpose(1, 2).unflatten(-1, (2, 2))


class Attentive(Linear):
    """A base whose velocity depends on all inputs: the prompt, its pooled embedding and the guidance."""

    def velocity(self, latents, time, guidance, condition):
        told = (
            condition.tensors["text"].mean((1, 2)) + 2 * condition.tensors["pooled"].mean(1) + 0.1 * guidance
        )
        return super().velocity(latents, time, guidance, condition) * (1 + told[:, None, None])


class Colours:
    """A reward whose features are the mean colours of an image, and the letters r, g, b of a text."""

    def score(self, images, texts):
        seen = self.encode_images(images).repeat(len(texts) // len(images), 1)
        return (seen * self.encode_texts(texts)).sum(-1)

    def encode_images(self, images):
        return normalize(images.mean((2, 3)), dim=-1)

    def encode_texts(self, texts):
        return normalize(
            torch.tensor([[1.0 + text.count(c) for c in "rgb"] for text in texts], dtype=torch.float64),
            dim=-1,
        )


def gradient(name, batch, settings, model=None):
    model = model or Linear()
    terms = list(METHODS[name].run(model, Colours(), batch, settings))
    sum(term.losses.sum() for term in terms).backward()
    return model.transformer.weight.grad, terms, model


def with_(settings, part, **changes):
    return settings.model_copy(update={part: getattr(settings, part).model_copy(update=changes)})


def shares(count):
    """Return a function of indices that returns the batch of these samples, some of which start from a real image.

    Each sample has its own prompt, noise, condition and image.
    """
    generator = torch.Generator().manual_seed(3)
    noise, real = (torch.randn(count, *SHAPE[1:], generator=generator, dtype=torch.float64) for _ in range(2))
    condition = Condition(
        {
            "text": torch.randn(count, 3, 2, generator=generator),
            "pooled": torch.randn(count, 4, generator=generator),
        }
    )
    prompts = ["r", "gg", "rb", "b", "ggb"]

    def share(rows, real_rows):
        images = {place: real[row] for place, row in enumerate(rows) if row in real_rows}
        texts = [prompts[row] for row in rows]
        return TrainBatch(texts, condition[rows], noise[rows], Draws(0, 1, rows), images, "rrr", "bbb")

    return share
