"""Prompts and reasons in a page: nothing in them is hidden, and nothing acts."""

import pytest

from srpo_core.report.templates import _environment
from srpo_core.report.text import markdown_code, markdown_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red apple", "a red apple"),
        ("Müller’s äpfel, 苹果, 👩‍🚀", "Müller’s äpfel, 苹果, 👩‍🚀"),
        ("a\x1b[2Jb\x00c\x07", "a\\x1b[2Jb\\x00c\\x07"),
        ("right\u202eto left", "right\\u202eto left"),
        ("c1\x9bm", "c1\\x9bm"),
        ("lone \ud800", "lone \\ud800"),
    ],
)
def test_control_characters_are_shown_as_escapes_and_other_text_as_it_is(text, shown):
    assert visible(text) == shown


def test_every_value_of_the_pages_templates_is_shown_without_control_characters():
    template = _environment().from_string("<p>{{ prompt }}</p>")
    assert template.render(prompt="<b>\x1b\x00") == "<p>&lt;b&gt;\\x1b\\x00</p>"


def test_text_in_markdown_forms_no_link_image_table_code_or_html():
    reason = "lost\n# title | x ![i](http://h/i.png) <script>`a`</script> *b* judge_top5."
    escaped = markdown_text(reason)
    assert "\n" not in escaped
    assert escaped == (
        r"lost # title \| x !\[i\](http://h/i.png) \<script\>\`a\`\</script\> \*b\* judge_top5."
    )


def test_no_line_ends_a_block_of_code():
    lines = ["verdict  refused", "````", "<b>\x1b"]
    assert markdown_code(lines) == "`````\nverdict  refused\n````\n<b>\\x1b\n`````"
    assert markdown_code(["a `b` c"]) == "```\na `b` c\n```"
