"""The reference's training step, written from its specification, to compare this project's step with.

It includes everything that makes the reference slow: anomaly detection is on, the VAE's parameters require
gradients, the text towers encode the texts again for every branch, and the branches run one after the other. All
arithmetic is float32. It shares no code with `srpo_core`.
"""

from dataclasses import dataclass

import torch
from phases import Phases
from step_spec import StepSpec
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

REALISM = ("Natural-lighting", "Detail", "Detailed", "Real")
COMPUTER_GRAPHICS = ("Concept art", "Painting", "Anime", "Flat", "Oil")
TRAINED_GUIDANCE = 3.5  # independent of the guidance of the rollout
MARGIN = 0.7
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SCALING, SHIFT = 0.3611, 0.1159  # of FLUX's latents


@dataclass(frozen=True)
class LiteralBranch:
    """A branch: grid indices of model call and target, the discount, its prompts."""

    model: int | Tensor
    target: int | Tensor
    discount: float
    positive: str
    negative: str


class LiteralStep:
    """The models, the optimizer and the schedules of the reference."""

    def __init__(self, spec: StepSpec) -> None:
        from open_clip import SimpleTokenizer

        torch.autograd.set_detect_anomaly(True)  # the reference turns it on at import and leaves it on
        self.spec, self.args = spec, spec.args
        self.flux, self.vae = spec.flux, spec.vae.requires_grad_(requires_grad=True)
        self.clip = spec.clip.requires_grad_(requires_grad=False)
        self.tokenize = SimpleTokenizer(context_length=spec.context_length)
        options = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.flux.parameters(),
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            betas=tuple(options["betas"]),
            eps=options["eps"],
        )
        args = self.args
        low, high = args["train_timestep"]
        schedule = shifted_schedule(args["vis_sampling_step"], args["shift"])
        self.grid = torch.linspace(float(schedule[low]), float(schedule[high]), args["timestep_length"])
        self.branch_losses: list[float] = []
        self.grad_norm = 0.0

    def report_to(self, phases: Phases) -> None:
        """Add the CPU seconds of each phase to `phases`."""
        for name in ("rollout", "decode", "reward", "backward"):
            phases.time(self, name, name)
        phases.time(self, "predict", "forward")
        phases.time(self, "update", "optimizer")

    def run(self, step: int, noise: Tensor, mid_timestep: int) -> float:
        """Take one optimizer step from latent noise (1, C, h, w); return the summed loss of its branches."""
        self.optimizer.zero_grad()
        packed = tokens_of(noise)
        start = self.rollout(packed)
        self.branch_losses = []
        for index in range(self.args["gradient_accumulation_steps"] - 1, -1, -1):
            self.branch(self.place(index, mid_timestep, step), packed, start)
        self.update()
        return sum(self.branch_losses)

    def rollout(self, packed: Tensor) -> Tensor:
        """Integrate by Euler along the rollout's schedule, in eval mode."""
        args, z = self.args, packed
        sigmas = shifted_schedule(args["sampling_steps"], args["shift"])
        self.flux.eval()
        with torch.no_grad():
            for i in range(args["sampling_steps"]):
                v = self.velocity(z, int(sigmas[i] * 1000), float(args["train_guidence"]))
                z = z.float() + (sigmas[i + 1] - sigmas[i]) * v
        self.flux.train()
        return z

    def velocity(self, z: Tensor, timestep: int, guidance: float) -> Tensor:
        """Call the transformer at one integer timestep."""
        rows, columns = self.args["h"] // 16, self.args["w"] // 16
        ids = torch.zeros(rows, columns, 3, dtype=torch.bfloat16)
        ids[..., 1] = ids[..., 1] + torch.arange(rows)[:, None]
        ids[..., 2] = ids[..., 2] + torch.arange(columns)[None, :]
        output: Tensor = self.flux(
            hidden_states=z.float(),
            encoder_hidden_states=self.spec.prompt_embeds,
            pooled_projections=self.spec.pooled,
            timestep=torch.tensor([timestep / 1000.0], dtype=torch.float32),
            guidance=torch.tensor([guidance], dtype=torch.float32),
            img_ids=ids.reshape(rows * columns, 3),
            txt_ids=torch.zeros(self.spec.prompt_embeds.shape[1], 3),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return output

    def place(self, index: int, mid_timestep: int, step: int) -> LiteralBranch:
        """Return the branch of an index: odd ones denoise, even ones invert."""
        args = self.args
        points = args["timestep_length"]
        usual = int((1 - args["groundtruth_ratio"]) * points) + 1
        # the midpoint is a tensor of one element, as in the reference: min and max return a tensor or a Python number
        m = torch.tensor([mid_timestep])
        k = min(points - m, usual, m)
        realism = REALISM[step % len(REALISM)] + ". " + self.spec.caption
        graphics = COMPUTER_GRAPHICS[step % len(COMPUTER_GRAPHICS)] + ". " + self.spec.caption
        if index % 2:
            mu, ends = m, args["discount_pos"]
            model, target = points - min(mu + k, points), points - mu
        else:
            mu, ends = max(m - k, 1), args["discount_inv"]
            model, target = points - mu, points - min(mu + k, points)
            realism, graphics = graphics, realism
        discount = float(torch.linspace(ends[0], ends[1], points)[mu])
        return LiteralBranch(model, target, discount, realism, graphics)

    def branch(self, branch: LiteralBranch, packed: Tensor, start: Tensor) -> None:
        """Inject, step, recover, decode, score, backward."""
        # a Python number selects a level without a dimension, and torch then multiplies in the noise's bfloat16
        s, t = self.grid[branch.model], self.grid[branch.target]
        x = (s * packed + (1 - s) * start).detach().requires_grad_()
        v = self.predict(x, int(s * 1000))
        recovered = (x + (t - s) * v - t * packed) / (1 - t)
        image = self.decode(recovered)
        reward = self.reward(branch, image)
        loss = F.relu(MARGIN - reward).mean() / self.args["gradient_accumulation_steps"]
        self.backward(loss)
        self.branch_losses.append(float(loss.detach()))

    def predict(self, x: Tensor, timestep: int) -> Tensor:
        """Return the velocity that is trained."""
        return self.velocity(x, timestep, TRAINED_GUIDANCE)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one branch."""
        loss.backward()  # type: ignore[no-untyped-call]

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens (1, S, 4C) into an image (1, 3, H, W) in [0, 1]."""
        args = self.args
        rows, columns = args["h"] // 16, args["w"] // 16
        z = tokens.view(1, rows, columns, tokens.shape[2] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        z = z.reshape(1, tokens.shape[2] // 4, 2 * rows, 2 * columns)
        image: Tensor = self.vae.decode(z / SCALING + SHIFT, return_dict=False)[0]
        return (image / 2 + 0.5).clamp(0, 1)

    def reward(self, branch: LiteralBranch, image: Tensor) -> Tensor:
        """Return <i, (1+k)·p − n>; no feature is cached."""
        i = F.normalize(self.clip.encode_image(pixels_of(image, self.spec.image_size)), dim=-1)
        with torch.no_grad():
            p = F.normalize(self.clip.encode_text(self.tokenize([branch.positive])), dim=-1)
            n = F.normalize(self.clip.encode_text(self.tokenize([branch.negative])), dim=-1)
        return ((1 + branch.discount) * p - n) @ i.T

    def update(self) -> None:
        """Clip and step; the gradients of the VAE are never cleared, as in the reference."""
        limit = self.spec.optimizer["max_grad_norm"]
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.flux.parameters(), limit))
        self.optimizer.step()


def shifted_schedule(steps: int, shift: float) -> Tensor:
    """Return noise levels (steps+1,) from 1 to 0, shifted towards noise."""
    linear = torch.linspace(1, 0, steps + 1)
    return shift * linear / (1 + (shift - 1) * linear)


def tokens_of(latents: Tensor) -> Tensor:
    """Pack (1, C, h, w) into tokens (1, h/2 · w/2, 4C), channels in the order c, dy, dx."""
    _, channels, height, width = latents.shape
    patches = latents.view(1, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(1, height * width // 4, 4 * channels)


def pixels_of(image: Tensor, size: int) -> Tensor:
    """Preprocess an image for the image tower: resize the shorter side to `size`, centre crop, normalize."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, normalize, resize

    image = resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = normalize(center_crop(image, [size, size]), MEAN, STD)
    return pixels
