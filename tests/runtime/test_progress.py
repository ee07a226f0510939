from srpo_core.runtime.progress import with_progress


def test_items_keep_their_order_and_nothing_is_printed_without_a_terminal(capfd):
    assert list(with_progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_the_label(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(with_progress([1, 2], "numbers")) == [1, 2]
    assert "numbers" in capfd.readouterr().err
