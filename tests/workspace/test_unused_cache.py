"""Which commits DVC is asked about before objects of its cache are called unused."""

from standin import git

from srpo_core.workspace.unused_cache import _commits


def test_of_commits_with_the_same_content_one_is_asked_about_and_none_of_a_removed_ref(tmp_path):
    """Nightly runs without new data or code differ only in the name of the run."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git(checkout, "init", "--quiet", "--initial-branch=main")

    def commit(content: str) -> str:
        (checkout / "params.yaml").write_text(content)
        git(checkout, "add", ".")
        git(checkout, "commit", "--quiet", "--allow-empty", "-m", content)
        return git(checkout, "rev-parse", "HEAD")

    tagged = commit("seed: 1")
    git(checkout, "tag", "--annotate", "data-1", "-m", "a data version")
    nightly = [commit("seed: 2") for _ in range(3)]
    for number, one in enumerate(nightly):
        git(checkout, "update-ref", f"refs/srpo/runs/{number}", one)
    gone = commit("seed: 3")
    git(checkout, "update-ref", "refs/srpo/runs/gone", gone)
    head = commit("seed: 4")
    assert len({*nightly, tagged, gone, head}) == 6
    found = _commits(checkout, without=["refs/srpo/runs/gone"])
    assert found[0] == head
    assert set(found) == {head, nightly[0], tagged}
    assert set(_commits(checkout, without=[])) == {head, nightly[0], tagged, gone}
    kept = _commits(checkout, without=["refs/srpo/runs/gone", "refs/srpo/runs/0"])
    assert len({git(checkout, "rev-parse", f"{one}^{{tree}}") for one in kept}) == len(kept) == 3
