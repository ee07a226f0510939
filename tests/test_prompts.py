import unicodedata

import pytest
from safetensors.numpy import save_file

from srpo_core import artifacts
from srpo_core.errors import ArtifactError
from srpo_core.prompts import normal_form, read_texts


@pytest.mark.parametrize(
    "other",
    [
        "A Caf\u00e9 at night",
        "A Cafe\u0301 at night",
        "  a caf\u00e9\u00a0AT \n night\t",
        "A CAFE\u0301 AT NIGHT",
    ],
)
def test_spellings_that_a_reader_takes_for_the_same_have_one_normal_form(other):
    assert normal_form(other) == "a caf\u00e9 at night"


@pytest.mark.parametrize("other", ["A cafe at night", "A caf\u00e9 at night.", "A caf\u00e9atnight"])
def test_other_words_have_another_normal_form(other):
    assert normal_form(other) != normal_form("A caf\u00e9 at night")


def test_the_normal_form_is_the_same_for_composed_and_decomposed_text_of_every_character():
    for code in range(0x20000):
        if not 0xD800 <= code < 0xE000:
            form = normal_form(chr(code))
            assert normal_form(unicodedata.normalize("NFD", chr(code))) == form, hex(code)
            assert normal_form(form) == form, hex(code)


def test_the_texts_of_a_split_are_read_from_the_directory_of_a_run(tmp_path):
    from numpy import zeros

    path = tmp_path / artifacts.EMBEDDINGS / "test.safetensors"
    with pytest.raises(ArtifactError, match="is missing: run 'dvc repro embed' first"):
        read_texts("test", tmp_path)
    path.parent.mkdir(parents=True)
    save_file({"x": zeros(1)}, path, {"texts": '{"prompts": ["a cat"], "styles": [""]}'})
    assert read_texts("test", tmp_path) == ["a cat"]
    save_file({"x": zeros(1)}, path)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_texts("test", tmp_path)
