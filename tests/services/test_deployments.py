import pytest

from srpo_core.errors import ConfigError
from srpo_core.services import deployments
from srpo_core.services.deployments import deployment_names

ONE = "deployments:\n  - name: align\n    entrypoint: flows/align.py:align\n"


def test_the_names_are_those_of_pipelines_yaml(tmp_path):
    (tmp_path / "pipelines.yaml").write_text(ONE + "  - name: gc\n")
    assert deployment_names(tmp_path) == ["align", "gc"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: run this in the checkout of the project"),
        ("deployments: [", "is not YAML"),
        ("deployments:\n  - entrypoint: a\n", "has no list 'deployments'"),
        ("", "has no list 'deployments'"),
        ("\xe4", "is not YAML"),
    ],
    ids=["missing", "no YAML", "no name", "empty", "no list"],
)
def test_what_cannot_be_deployed_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "pipelines.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as caught:
        deployment_names(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed", ["pipelines.yaml", "flows/align.py", "profiles/tiny.yaml", "srpo_core/a/b.py"]
)
def test_a_change_of_what_makes_the_forms_deploys_again(tmp_path, changed):
    for name in ("pipelines.yaml", "flows/align.py", "profiles/tiny.yaml", "srpo_core/a/b.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = deployments._digest(tmp_path)
    (tmp_path / "README.md").write_text("2")
    assert deployments._digest(tmp_path) == before
    (tmp_path / changed).write_text("2")
    assert deployments._digest(tmp_path) != before
