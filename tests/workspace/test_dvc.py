import pytest

from srpo_core.errors import SrpoError
from srpo_core.workspace.dvc import run_dvc


def run_fake_dvc(directory, *lines):
    """Run a `dvc` that prints lines to standard error and fails."""
    program = directory / "dvc"
    program.write_text(
        "#!/bin/sh\ncat >&2 <<'END'\n" + "".join(f"{line}\n" for line in lines) + "END\nexit 7\n"
    )
    program.chmod(0o755)
    with pytest.raises(SrpoError, match=r"^'dvc push data' in .* failed: ") as raised:
        run_dvc("push", "data", cwd=directory, environment={"PATH": f"{directory}:/usr/bin:/bin"})
    return str(raised.value).partition("failed: ")[2]


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        (
            "ERROR: unexpected error - no such bucket\n\nHaving any troubles? Hit us up at https://dvc.org/support",
            "ERROR: unexpected error - no such bucket",
        ),
        (
            "ERROR: failed to transfer 'ab' - denied\nERROR: failed to push data - 1 files failed to upload",
            "ERROR: failed to transfer 'ab' - denied; ERROR: failed to push data - 1 files failed to upload",
        ),
        (
            "ERROR: failed to pull - Checkout failed for following targets:\ndata/emoji\nIs your cache up to date?",
            "ERROR: failed to pull - Checkout failed for following targets: data/emoji",
        ),
        ("something\n\nHaving any troubles? Hit us up", "something"),
        ("fatal: not a repository\nhint: ERROR: no", "fatal: not a repository"),
    ],
)
def test_an_error_of_dvc_is_its_error_line_and_not_the_advice_after_it(printed, told, tmp_path):
    assert run_fake_dvc(tmp_path, *printed.split("\n")) == told


def test_a_dvc_that_prints_nothing_fails_with_its_exit_code(tmp_path):
    assert run_fake_dvc(tmp_path) == "exit code 7"


def test_credentials_in_an_error_of_dvc_are_masked(tmp_path):
    told = run_fake_dvc(tmp_path, "ERROR: cannot reach https://user:secret@example.org/data")
    assert told.startswith("ERROR: cannot reach ")
    assert "secret" not in told
