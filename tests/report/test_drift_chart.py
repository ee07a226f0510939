import base64

from srpo_core.report.drift_chart import MOST_STYLES, drift_image, style_shares


def test_the_styles_that_moved_most_are_shown_and_the_others_together():
    before = {f"style {number}": 10 for number in range(20)}
    after = {**before, "style 7": 40, "style 9": 0}
    rows = style_shares(before, after)
    assert len(rows) == MOST_STYLES
    assert [row[0] for row in rows[:2]] == ["style 7", "style 9"]
    assert rows[-1][0] == "all others"
    for column in (1, 2):
        assert abs(sum(row[column] for row in rows) - 1) < 1e-9


def test_the_chart_has_a_bar_of_each_side_for_each_style_and_for_the_agreement():
    image = drift_image({"a": 3, "b": 1}, {"a": 1, "<c>": 3}, ((0.9, 0.85, 0.94), (0.5, 0.4, 0.6)))
    kind, _, content = image.partition(",")
    svg = base64.b64decode(content).decode()
    assert kind == "data:image/svg+xml;base64"
    assert svg.count('<rect class="before"') == svg.count('<rect class="after"') == 5  # with the legend's
    assert svg.count('<line class="interval"') == 2
    assert "&lt;c&gt;" in svg
    assert "75%" in svg
    assert "90%" in svg
