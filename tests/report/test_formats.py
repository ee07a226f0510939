import pytest

from srpo_core.report.formats import FORMATS_MARK, with_formats

PAGE = f"<section>{FORMATS_MARK}</section>"


def measured(**changes):
    return {
        "files": {"a": {"bytes": 2_500_000}, "b": {"bytes": 500_000}},
        "relative_error": 0.0123,
        "psnr": 20.9,
        "gain_kept": 0.93,
        "refused": [],
    } | changes


@pytest.fixture
def page():
    refused = measured(psnr=None, gain_kept=None, refused=["psnr 9 is below 15", "a < b"])
    return with_formats(PAGE, {"formats": {"bf16": measured()}, "refused": {"q4_0": refused}})


def test_every_format_has_a_row_with_its_size_and_its_loss(page):
    row = page[page.index(">bf16<") : page.index(">q4_0<")]
    for shown in (">3.00<", ">0.012<", ">20.9<", ">93%<", ">yes<"):
        assert shown in row
    assert FORMATS_MARK not in page


def test_a_refused_format_shows_its_reason_with_escaped_markup(page):
    row = page[page.index(">q4_0<") :]
    assert "left out: psnr 9 is below 15; a &lt; b" in row
    assert row.count(">–<") == 2


def test_a_page_without_a_placeholder_is_unchanged():
    assert with_formats("<p>", {"formats": {"bf16": measured()}, "refused": {}}) == "<p>"
