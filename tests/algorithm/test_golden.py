"""Parity of the training code with the reference implementation, on vectors that the reference computed.

The vectors in tests/golden are a subset; SRPO_GOLDEN_DIR names a directory with others of the same form.
"""

import math
import re
from collections import Counter
from functools import cache

import pytest
import torch
from golden_vectors import (
    FULL,
    PLAIN,
    SUBSET,
    Golden,
    directories,
    frequencies_rounded_from_float64,
    reward_scale,
    reward_tolerance,
)

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.direct_align import branches
from srpo_core.algorithm.reference import truncated_time
from srpo_core.algorithm.rollout import euler_step
from srpo_core.algorithm.schedule import shifted_sigmas, training_grid
from srpo_core.algorithm.srpo import discounts, srpo
from srpo_core.models.flux import image_ids, pack, unpack
from srpo_core.training.learner import Learner, adamw, backward_terms

ELEMENTWISE = 1e-5
LOSS = 1e-6
GRADIENT = 1e-5  # error of a tensor's norm, relative to it; or of all gradients of a case, relative to the norm of all
TENSOR = (
    2e-5  # error of a whole gradient, relative to its norm: another order of sums changes one by up to 8e-6
)
FLOOR = 1e-4  # relative to the norm of all gradients: the smallest norm that an error is divided by
ONE_CALL = 3e-5  # one call on two rows sums in another order than two calls on one row
PROBE = 5e-5  # a weighted sum of signed entries: its error may be several times that of the norm
WEIGHT = 1e-6
MOVE = 1e-4  # Adam divides by the gradient's size, so the rounding of an entry near zero decides its change
# relative to a tensor's root mean square. For a smaller gradient, rounding decides how its weight changes, and rounding
# differs between CPUs (AVX2, AVX-512), also in diffusers. Such entries, under 2 %, may differ by 3 % of a step.
VANISHING = 1e-3
OF_A_STEP = 0.03
EDGE = 1e-6  # distance from 0 or 1 within which rounding decides whether the clamp passes a pixel's gradient
ON_THE_EDGE = 2  # largest number of such pixels in a case; more are an error
FUSED = {"compute": PLAIN | {"fused_optimizer": True}}
TOGETHER = {"batch_branches": True}  # with FUSED, this is `exact` in benchmarks/train_step.py
STATES = ("noisy", "pred", "recovered_packed", "image")
SEEN = (*STATES, "decoded")
INDEX_TABLES = {"hps": "hps.mid500", "ps": "ps.mid500", "r05_N200": "ga4.mid100"}

golden_of = cache(Golden)
compared: Counter[str] = Counter()
worst: dict[str, float] = {}


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, like the reference: another order of sums changes some weights by more than 1e-6."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with frequencies_rounded_from_float64():
        yield
    torch.set_num_threads(before)


every_set = pytest.mark.parametrize("directory", directories(), ids=lambda path: path.parent.name)
every_case = pytest.mark.parametrize(
    ("directory", "case"),
    [(path, case) for path in directories() for case in golden_of(path).cases],
    ids=lambda value: value if isinstance(value, str) else value.parent.name,
)
every_table = pytest.mark.parametrize(
    ("directory", "table"),
    [
        (path, name)
        for path in directories()
        for name in INDEX_TABLES
        if f"index_table.{name}" in golden_of(path)
    ],
    ids=lambda value: value if isinstance(value, str) else value.parent.name,
)


@pytest.fixture(scope="module", autouse=True)
def _print_what_was_compared(request):
    yield
    counts = ", ".join(f"{count} {what}" for what, count in compared.items())
    errors = ", ".join(f"{what} {error:.1e}" for what, error in worst.items())
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\ngolden vectors: {counts}; worst relative error: {errors}")


def note(what, error):
    worst[what] = max(worst.get(what, 0.0), error)
    return error


def relative_error(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30))


def probe(gradient):
    flat = gradient.double().flatten()
    return float((flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum())


class Recorded:
    """One step of the method `srpo`, with all inputs and outputs of model and decoder."""

    def __init__(self, golden, case, **changes):
        self.base, self.seen = golden.case_base(case), {name: [] for name in SEEN}
        self.times, self.guidance, self.terms, self.gradients, self.rolled = [], [], [], [], []
        self._record(self.base.velocity, self.base.decode)
        settings = golden.case_settings(case, **changes)
        reward = golden.rewards[golden.cases[case]["reward"]]
        for term in srpo(self.base, reward, golden.case_batch(case), settings):
            backward_terms([term], settings.batch_size)
            self.terms.append(term)
            self.gradients.append({n: p.grad.clone() for n, p in self.base.transformer.named_parameters()})

    def _record(self, velocity, decode):
        def recording_velocity(latents, time, guidance, condition):
            output = velocity(latents, time, guidance, condition)
            if torch.is_grad_enabled():
                self.seen["noisy"].append(latents)
                self.seen["pred"].append(output.detach())
                self.times.append(time.tolist())
                self.guidance.append(guidance)
            else:
                self.rolled.append((round(1000 * float(time[0])), guidance))
            return output

        def recording_decode(latents):
            images = decode(latents)
            self.seen["recovered_packed"].append(latents.detach())
            self.seen["decoded"].append(images.detach())
            self.seen["image"].append(images.detach().clamp(0, 1))
            return images

        self.base.velocity, self.base.decode = recording_velocity, recording_decode


def at_bounds(images):
    return (images == 0) | (images == 1)


def undecided(step, golden, case):
    """Count the pixels for which rounding decides whether they have a gradient.

    They are clamped in one implementation only or, if the reference's image is not stored, near the edge.
    """
    count = 0
    for index, (decoded, image) in enumerate(zip(step.seen["decoded"], step.seen["image"], strict=True)):
        if (known := f"{case}.b{index}.image") in golden:
            count += int((at_bounds(image) != at_bounds(golden[known])).sum())
        else:  # the subset omits some images
            count += int((torch.minimum(decoded.abs(), (decoded - 1).abs()) < EDGE).sum())
    return count


def skip_on_the_edge(pixels):
    assert pixels <= ON_THE_EDGE
    if pixels:
        pytest.skip(
            f"pixels on the edge of the clamp, whose rounding decides if they have a gradient: {pixels}"
        )


@pytest.fixture(scope="module")
def recorded():
    """Run each case once for all its tests."""
    return cache(lambda directory, case: Recorded(golden_of(directory), case))


def test_the_shipped_vectors_have_at_most_six_megabytes():
    sizes = [(SUBSET / f"golden.{suffix}").stat().st_size for suffix in ("json", "safetensors")]
    assert sum(sizes) <= 6_000_000


@every_set
def test_every_set_has_cases_and_an_index_table(directory):
    golden = golden_of(directory)
    assert golden.cases
    assert [name for name in INDEX_TABLES if f"index_table.{name}" in golden]


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set is not available")
def test_the_full_set_is_complete():
    golden = golden_of(FULL)
    assert len(golden.cases) == 21
    assert len(golden["index_table.hps"]) == 2 * 991  # every midpoint, both branches


@every_case
def test_the_rollout_makes_the_same_model_calls_as_the_reference(recorded, directory, case):
    expected = golden_of(directory).cases[case]
    step = recorded(directory, case)
    assert [time for time, _ in step.rolled] == expected["rollout_timestep_ints"]
    assert {guidance for _, guidance in step.rolled} == {expected["rollout_guidance"]}


@every_case
def test_every_branch_of_a_case_equals_the_references(recorded, directory, case):
    golden, step = golden_of(directory), recorded(directory, case)
    expected = golden.cases[case]["branches"]
    assert len(step.terms) == len(expected) > 0
    for index, (branch, term) in enumerate(zip(expected, step.terms, strict=True)):
        assert list(term.rewards) == [branch["kind"]]
        assert step.times[index] == branch["timestep_over_1000"]
        assert [step.guidance[index]] == branch["guidance"]
        for name in STATES:
            if name != "image" or f"{case}.b{index}.{name}" in golden:  # the subset omits some images
                theirs = golden[f"{case}.b{index}.{name}"]
                assert note(name, relative_error(step.seen[name][index], theirs)) < ELEMENTWISE, name
        reward, loss = term.rewards[branch["kind"]].tolist(), float(term.losses.detach().sum())
        scorer = golden.rewards[golden.cases[case]["reward"]]
        rounding = LOSS * reward_scale(scorer, branch["k"])
        assert reward == pytest.approx(branch["reward"], rel=LOSS, abs=reward_tolerance(scorer, branch["k"]))
        # the loss is the margin minus the reward, so it differs by as much as the reward does, and by rounding
        carried = sum(branch["reward"]) - sum(reward) if branch["loss"] > 0 else 0.0
        assert loss - carried == pytest.approx(branch["loss"], rel=LOSS, abs=rounding)
        note("reward", abs(reward[0] - branch["reward"][0]) / max(1.0, abs(reward[0])))
    assert float(step.terms[-1].losses.detach().sum()) - carried == pytest.approx(
        golden.cases[case]["returned_loss"], rel=LOSS, abs=rounding
    )
    compared["cases"] += 1


@every_case
def test_every_gradient_of_a_case_equals_the_references(recorded, directory, case):
    golden, step = golden_of(directory), recorded(directory, case)
    skip_on_the_edge(undecided(step, golden, case))
    for index, branch in enumerate(golden.cases[case]["branches"]):
        assert branch["cumulative_grad"].keys() == step.gradients[index].keys()
        total, whole = branch["cumulative_grad_total_norm"], []
        for name, figures in branch["cumulative_grad"].items():
            gradient, size = step.gradients[index][name], max(figures["norm"], FLOOR * total)
            error = abs(float(gradient.double().norm()) - figures["norm"])
            assert error <= GRADIENT * size, name
            off = abs(probe(gradient) - figures["probe"])
            assert off <= PROBE * size, name
            if size > 0:  # beyond the hinge all gradients are zero
                note("gradient norm", error / size)
                note("gradient probe", off / size)
            if (full := f"{case}.b{index}.grad.{name}") in golden:
                whole.append(float((gradient.double() - golden[full].double()).norm()))
                assert whole[-1] <= TENSOR * size, name
                if size > 0:
                    note("whole gradient", whole[-1] / size)
                compared["whole gradients"] += 1
        assert math.hypot(*whole) <= GRADIENT * total


@every_case
def test_the_images_of_the_rollout_equal_the_references(directory, case):
    from srpo_core.algorithm.rollout import starting_images

    golden = golden_of(directory)
    start = f"{golden.cases[case]['rollout']}.latent_start"
    x0, _ = starting_images(golden.case_base(case), golden.case_batch(case), golden.case_settings(case))
    assert note("latent_start", relative_error(x0, golden[start])) < ELEMENTWISE


@every_case
def test_branches_in_one_call_give_the_same_gradient_as_separate_calls(recorded, directory, case):
    golden, apart = golden_of(directory), recorded(directory, case)
    if len(apart.terms) == 1:
        return
    together = Recorded(golden, case, batch_branches=True)
    assert len(together.terms) == 1
    images = [torch.cat(step.seen["image"]) for step in (apart, together)]
    skip_on_the_edge(int((at_bounds(images[0]) != at_bounds(images[1])).sum()))
    gradients, expected = together.gradients[-1], apart.gradients[-1]
    whole = math.sqrt(sum(float(g.double().norm()) ** 2 for g in expected.values()))
    for name, gradient in expected.items():
        size = max(float(gradient.double().norm()), FLOOR * whole)
        difference = float((gradients[name] - gradient).double().norm())
        assert difference <= ONE_CALL * size, name
        if size > 0:
            note("branches in one call", difference / size)
    losses = sum(float(term.losses.detach().sum()) for term in apart.terms)
    assert float(together.terms[0].losses.detach().sum()) == pytest.approx(losses, rel=1e-5)


@every_table
def test_the_indices_of_every_midpoint_equal_the_references(directory, table):
    golden = golden_of(directory)
    rows, settings = golden[f"index_table.{table}"], golden.case_settings(INDEX_TABLES[table])
    align = settings.direct_align
    grid = training_grid(align.schedule_steps, settings.rollout.shift, align.first, align.last, align.grid)
    midpoints = rows[::2, 0].int().tolist()
    assert rows[:, 1].tolist() == [1, 0] * len(midpoints)
    at = branches(midpoints, align.grid, align.ratio)
    for name, theirs in (("denoise", rows[::2]), ("inversion", rows[1::2])):
        branch = at[name]
        assert branch.s.tolist() == theirs[:, 2].tolist()
        assert branch.t.tolist() == theirs[:, 3].tolist()
        assert (truncated_time(grid[branch.s]) * 1000).round().tolist() == theirs[:, 4].tolist()
        assert branch.clamped.double().tolist() == theirs[:, 5].tolist()
        assert torch.equal(discounts(align, name)[branch.discount].double(), theirs[:, 6])
        assert torch.equal(grid[branch.s].double(), theirs[:, 7])
        assert torch.equal(grid[branch.t].double(), theirs[:, 8])
    compared["rows of index tables"] += len(rows)


@every_set
def test_schedules_grids_and_discounts_equal_the_references_exactly(directory):
    golden = golden_of(directory)
    for name in [name for name in golden.tensors if name.startswith("comp.sigmas_n")]:
        steps, shift = re.fullmatch(r"comp\.sigmas_n(\d+)_shift([\d.]+)", name).groups()
        assert torch.equal(shifted_sigmas(int(steps), float(shift)), golden[name]), name
        compared["component vectors"] += 1
    for name in [name for name in golden.tensors if name.startswith("comp.sigmas_l_")]:
        first, last, points = map(int, re.findall(r"\d+", name))
        assert torch.equal(training_grid(50, 3.0, first, last, points), golden[name]), name
        compared["component vectors"] += 1
    for name, case, branch in (
        ("pos", "hps.mid500", "denoise"),
        ("inv", "hps.mid500", "inversion"),
        ("ps_pos", "ps.mid500", "denoise"),
        ("ps_inv", "ps.mid500", "inversion"),
    ):
        if f"comp.discount_{name}" not in golden:  # a set without PickScore
            continue
        ours = discounts(golden.case_settings(case).direct_align, branch)
        assert torch.equal(ours, golden[f"comp.discount_{name}"]), name
        compared["component vectors"] += 1


@every_set
def test_the_truncated_times_of_schedules_and_grid_equal_the_references(directory):
    ints = golden_of(directory).json["timestep_ints"]
    ours = {
        "rollout25": shifted_sigmas(25, 3.0),
        "rollout50": shifted_sigmas(50, 3.0),
        "train_5_25": training_grid(50, 3.0, 5, 25, 1000),
    }
    for name, sigmas in ours.items():
        assert (truncated_time(sigmas) * 1000).round().int().tolist() == ints[name], name
        compared["component vectors"] += 1


@every_set
def test_packing_and_position_ids_equal_the_references(directory):
    golden = golden_of(directory)
    latents = golden["comp.pack.in"]
    assert torch.equal(pack(latents), golden["comp.pack.out"])
    assert torch.equal(
        unpack(golden["comp.pack.out"], *latents.shape[-2:]), golden["comp.unpack.out_h48_w80"]
    )
    assert torch.equal(image_ids(6, 10), golden["comp.ids_3x5"].float())
    compared["component vectors"] += 3


@every_set
def test_a_euler_step_equals_the_references(directory):
    golden = golden_of(directory)
    latent, pred = golden["comp.flux_step.latent"], golden["comp.flux_step.pred"]
    sigmas = shifted_sigmas(25, 3.0)
    for step in (0, 12, 24):
        ours = euler_step(
            lambda *_: pred, latent, None, sigma=sigmas[step], next_sigma=sigmas[step + 1], guidance=1
        )
        assert torch.equal(ours, golden[f"comp.flux_step.out_{step}"])
        compared["component vectors"] += 1


def learner_of(golden, **changes):
    """Return the learner with the settings of the reference's three steps."""
    run = golden.json["train3"]
    args = run["args"]
    settings = golden.settings(
        args,
        calls=args["gradient_accumulation_steps"],
        guidance=args["train_guidence"],
        steps=args["sampling_steps"],
        optimizer={
            "learning_rate": run["lr"],
            "weight_decay": run["weight_decay"],
            "betas": run["betas"],
            "eps": run["eps"],
            "max_grad_norm": run["max_grad_norm"],
        },
        **changes,
    )
    base = golden.base(args["w"], args["h"])
    return Learner(
        base, golden.rewards["hps"], adamw(base.transformer, settings), settings, METHODS["srpo"].run
    )


def learn(golden, learner, theirs):
    noise = golden[f"train3.s{theirs['step']}.noise_bf16"]
    batch = golden.batch(noise, theirs["caption_index"], theirs["step"], theirs["mid"])
    return learner.step(batch, theirs["step"])


@every_set
def test_three_optimizer_steps_change_the_weights_by_the_references_amounts(directory):
    golden = golden_of(directory)
    learner = learner_of(golden)
    weights = dict(learner.model.transformer.named_parameters())
    for theirs in golden.json["train3"]["steps"]:
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        metrics = learn(golden, learner, theirs)
        assert metrics["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=GRADIENT)
        assert metrics["loss"] == pytest.approx(sum(theirs["branch_losses"]), abs=LOSS)
        rewards = [[metrics["reward_denoise"]], [metrics["reward_inversion"]]]
        assert rewards == [pytest.approx(reward, abs=LOSS) for reward in theirs["branch_rewards"]]
        assert theirs["delta"].keys() == weights.keys()
        for name, figures in theirs["delta"].items():
            moved = float((weights[name].detach() - before[name]).double().norm())
            assert moved == pytest.approx(figures["norm"], rel=MOVE), name
            note("move of a tensor", abs(moved / figures["norm"] - 1))
        compared["optimizer steps"] += 1


@every_set
@pytest.mark.parametrize("changes", [{}, FUSED, FUSED | TOGETHER], ids=["stock", "fused", "fused, one call"])
def test_three_optimizer_steps_give_the_references_weights(directory, changes):
    golden = golden_of(directory)
    learner = learner_of(golden, **changes)
    weights = dict(learner.model.transformer.named_parameters())
    vanishing = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for theirs in golden.json["train3"]["steps"]:
        learn(golden, learner, theirs)
        for name, weight in weights.items():
            vanishing[name] |= weight.grad.abs() < VANISHING * weight.grad.square().mean().sqrt()
    errors = {}
    for name in [name for name in golden.tensors if name.startswith("train3.final.")]:
        ours, theirs = weights[name.removeprefix("train3.final.")].detach(), golden[name]
        left_out = vanishing[name.removeprefix("train3.final.")]
        assert float(left_out.float().mean()) < 0.02, name
        assert float((ours - theirs).abs().max()) < OF_A_STEP * golden.json["train3"]["lr"], name
        kept = ours.masked_fill(left_out, 0), theirs.masked_fill(left_out, 0)
        errors[name] = note("weights after AdamW", relative_error(*kept))
    assert len(errors) > 0
    assert max(errors.values()) < WEIGHT, errors
