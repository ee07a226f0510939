"""The shipped family meets its requirements by the figures of its recipe, and its README contains those figures."""

import json

import pytest

STYLES = ("3D", "Flat", "Ink", "Noto")


@pytest.fixture
def figures(tiny):
    """The figures of each stage of the recipe, by stage."""
    return {path.stem: json.loads(path.read_text()) for path in (tiny / "recipe/figures").glob("*.json")}


@pytest.fixture
def readme(tiny):
    """The family's README as one line of words."""
    return " ".join((tiny / "README.md").read_text(encoding="utf-8").split())


def short(value: float) -> str:
    """Format a fraction as the README does: three digits, no zero before the point."""
    text = f"{value:.3f}"
    return text if text.startswith("1") else text[1:]


@pytest.mark.parametrize("judge", ["a", "b"])
def test_both_judges_recognise_the_subjects_that_are_not_used_in_alignment(figures, judge):
    measured = figures["measure"]
    assert measured["pictures"] >= 400
    assert measured[f"top1_{judge}"] >= 0.85
    assert measured[f"top5_{judge}"] >= 0.95


@pytest.mark.parametrize("style", STYLES)
def test_the_base_follows_style_words_except_flat_as_the_readme_states(figures, readme, style):
    obeyed = {judge: figures["measure"][f"obeys_{style}_{judge}"] for judge in ("a", "b")}
    missed = {judge: share for judge, share in obeyed.items() if share < 0.85}
    assert set(missed) <= ({"b"} if style == "Flat" else set())
    for share in missed.values():
        assert share >= 0.84
        assert (
            f"Judge B sees the style Flat in {short(share)} of the images whose prompt asks for it" in readme
        )


def test_the_four_styles_differ_as_much_as_in_the_originals(figures):
    drawn, original = (figures["measure"][f"distance_{which}"] for which in ("drawn", "original"))
    assert {pair: distance / original[pair] >= 0.95 for pair, distance in drawn.items()} == dict.fromkeys(
        original, True
    )


def test_the_vae_has_a_psnr_of_at_least_26_db_on_unseen_subjects(figures):
    assert figures["vae"]["psnr_unseen_db"] >= 26


@pytest.mark.parametrize("judge", ["judge_a", "judge_b"])
def test_each_judge_recognises_the_style_of_at_least_90_percent_of_unseen_real_images(figures, judge):
    assert figures[judge]["style_unseen"] >= 0.9


def test_the_reward_ranks_unseen_subjects_above_chance(figures):
    assert figures["reward"]["unseen_subject_of_10"] >= 0.3


def test_the_table_in_the_readme_contains_the_figures_of_the_recipe(figures, readme):
    vae, measured, reward = figures["vae"], figures["measure"], figures["reward"]
    assert f"{vae['psnr_unseen_db']:.1f} dB on unseen subjects in all styles" in readme
    assert f"{vae['psnr_seen_db']:.1f} dB on the 3D images of seen ones" in readme
    assert f"squared error of the velocity {short(figures['base']['loss'])}" in readme
    assert (
        f"top-1 accuracy of judge A {measured['top1_a']:.3f}, of judge B {short(measured['top1_b'])}"
        in readme
    )
    assert measured["top1_a"] == measured["top5_a"] == measured["top5_b"] == 1
    for name in ("judge_a", "judge_b"):
        assert f"subject {short(figures[name]['subject_seen'])} of 160 (seen)" in readme
        assert f"style {short(figures[name]['style_unseen'])} of 1,220" in readme
    for statement, figure in (
        ("accuracy among 160 names {} (seen subjects)", reward["subject_of_160"]),
        ("among ten names {} (unseen subjects; chance .10)", reward["unseen_subject_of_10"]),
        ("style, given the right name, {} (unseen subjects", reward["unseen_style"]),
    ):
        assert statement.format(f"{figure:.2f}".removeprefix("0")) in readme


def test_the_table_in_the_readme_contains_the_cpu_minutes_of_every_stage(figures, readme):
    stages = ("vae", "base", "distill", "reward", "judge_a", "judge_b")
    minutes = {stage: figures[stage]["cpu_seconds"] / 60 for stage in stages}
    for spent in minutes.values():
        assert f"| {spent:.1f} |" in readme
    assert f"| all | {sum(minutes.values()):.1f} |" in readme


def test_the_readme_contains_the_figures_of_every_seed(figures, readme):
    for seed, figure in figures["spread"]["per_seed"].items():
        obeyed = (f"{figure[f'obeys_{style}_{judge}']:.2f}" for style in STYLES for judge in ("a", "b"))
        pairs = [", ".join(pair) for pair in zip(*[iter(obeyed)] * 2, strict=True)]
        row = " | ".join(pair.replace("0.", ".") for pair in pairs)
        first = f"{figure['top1_a']:.3f}, {short(figure['top1_b'])}"
        five = f"{figure['top5_a']:.3f}, {figure['top5_b']:.3f}"
        name = "0, shipped" if seed == "0" else seed
        assert f"| {name} | {first} | {five} | {row} |" in readme


def test_at_lower_guidance_the_base_follows_every_style_word_and_keeps_the_subject(figures):
    for guidance in ("2", "2.5"):
        at = figures["guidance"]["drawn"][guidance]
        assert min(share for name, share in at.items() if name.startswith("obeys_")) >= 0.85
        assert min(share for name, share in at.items() if name.startswith("top")) >= 0.95


def test_guidance_was_measured_on_the_shipped_base(figures):
    own = figures["guidance"]["drawn"]["3.5"]
    assert own == {name: figures["measure"][name] for name in own}


def test_the_readme_describes_the_effect_of_guidance(figures, readme):
    drawn, real = figures["guidance"]["drawn"], figures["guidance"]["real_unseen"]
    columns = [("top1", ""), *(("obeys", f"_{style}") for style in STYLES)]
    for guidance, at in drawn.items():
        cells = (", ".join(short(at[f"{kind}{style}_{j}"]) for j in ("a", "b")) for kind, style in columns)
        assert f"| {guidance} | {' | '.join(cells)} |" in readme
    cells = (", ".join(short(real[f"sees_{style}_{j}"]) for j in ("a", "b")) for style in STYLES)
    assert f"| real images of unseen subjects | | {' | '.join(cells)} |" in readme


@pytest.mark.parametrize("pair", ["3D-Flat", "3D-Ink", "3D-Noto", "Flat-Ink", "Flat-Noto", "Ink-Noto"])
def test_the_readme_states_the_distance_between_two_styles(figures, readme, pair):
    drawn, original = (figures["measure"][f"distance_{which}"][pair] for which in ("drawn", "original"))
    assert f"{pair.replace('-', '–')} {short(drawn)} and {short(original)}" in readme
