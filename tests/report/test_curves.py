import pytest

from srpo_core.errors import ArtifactError
from srpo_core.report.curves import TRAIN_PLOTS, checkpoint_panels, training_panels


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log" / TRAIN_PLOTS
    folder.mkdir(parents=True)
    (folder / "loss.tsv").write_text("step\tloss\n0\t0.7\n1\t0.5\n")
    (folder / "reward_denoise.tsv").write_text("step\treward_denoise\n0\t0.1\n1\t0.2\n")
    (folder / "reward_inversion.tsv").write_text("timestamp\tstep\treward_inversion\n9\t0\t0.3\n9\t1\tnan\n")
    (folder / "grad_norm.tsv").write_text("step\tgrad_norm\n0\t1.5\n")
    return tmp_path / "log"


def test_the_two_branches_share_a_panel_and_other_columns_have_their_own(log):
    panels = training_panels(log)
    assert {name: [line.name for line in lines] for name, lines in panels.items()} == {
        "grad_norm": ["grad_norm"],
        "loss": ["loss"],
        "reward": ["denoise", "inversion"],
    }
    assert panels["loss"][0].points == [(0.0, 0.7), (1.0, 0.5)]


def test_timestamps_and_nan_values_are_left_out(log):
    assert training_panels(log)["reward"][1].points == [(0.0, 0.3)]


def test_a_curve_with_only_nan_values_is_left_out_of_its_panel(log):
    (log / TRAIN_PLOTS / "reward_inversion.tsv").write_text("step\treward_inversion\n0\tnan\n")
    (log / TRAIN_PLOTS / "loss.tsv").write_text("step\tloss\n0\tnan\n")
    panels = training_panels(log)
    assert [line.name for line in panels["reward"]] == ["denoise"]
    assert "loss" not in panels


@pytest.mark.parametrize("text", ["step\tloss\n0\tlow\n", "loss\n0.7\n", "step\tloss\n3\n"])
def test_a_damaged_log_is_named(log, text):
    (log / TRAIN_PLOTS / "loss.tsv").write_text(text)
    with pytest.raises(ArtifactError, match=r"loss\.tsv is damaged"):
        training_panels(log)


def test_an_empty_log_is_named(tmp_path):
    (tmp_path / TRAIN_PLOTS).mkdir(parents=True)
    with pytest.raises(ArtifactError, match="dvc repro --force -s train"):
        training_panels(tmp_path)


def test_checkpoint_panels_follow_the_metric_order_of_the_evaluation():
    curve = [
        {"step": 10, "reward": 0.7, "judge": 0.6, "note": "text"},
        {"step": 5, "reward": None, "judge": 0.5, "extra": 1},
    ]
    panels = checkpoint_panels(curve, ["judge", "reward"])
    assert list(panels) == ["judge", "reward", "extra"]
    assert panels["judge"][0].points == [(5.0, 0.5), (10.0, 0.6)]
    assert panels["reward"][0].points == [(10.0, 0.7)]


def test_a_checkpoint_that_was_dropped_early_is_a_line_of_its_own_because_its_mean_is_of_fewer_prompts():
    curve = [{"step": step, "reward": step / 10} for step in (0, 5, 10)]
    lines = checkpoint_panels(curve, [], dropped=[5])["reward"]
    assert [line.name for line in lines] == ["reward", "dropped early, with fewer prompts"]
    assert [line.points for line in lines] == [[(0.0, 0.0), (10.0, 1.0)], [(5.0, 0.5)]]
