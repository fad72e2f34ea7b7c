"""Every stage's YAML says what its class says: the fields, their defaults, and in a comment what each means."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
import yaml

from curator.compose import CONF, composed, job_from
from curator.custom import BUILT_IN, stage_class
from curator.settings import Settings
from curator.stage import Role, fields_of

FILES = sorted((CONF / "stages").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_stages_yaml_has_exactly_its_fields_with_their_defaults(path):
    """So that the YAML is the manual and never lies about a default."""
    loaded = yaml.safe_load(path.read_text())
    kind = stage_class(loaded.pop("_target_"), path.stem, None)
    assert BUILT_IN[path.stem] == f"{kind.__module__}.{kind.__name__}"
    assert list(loaded)
    assert set(loaded) == set(fields_of(kind))
    made = kind()
    assert made.name == path.stem
    for name, value in loaded.items():
        default = getattr(made, name)
        default = asdict(default) if is_dataclass(default) else default
        assert (list(default) if isinstance(default, tuple) else default) == value, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_has_its_meaning_beside_it(path):
    """And the file says what it is in its first lines."""
    lines = path.read_text().splitlines()
    assert lines[0] == f"# @package {path.stem}"
    assert lines[1].startswith("# ")
    for line in lines[2:]:
        assert re.match(r"_target_: \S+$| *\w+: .*\S\s+# \S|\w+:\s+# \S|\s+# \S", line), line


def test_every_stage_has_a_yaml_and_every_yaml_a_stage():
    """One stage, one file, one YAML."""
    assert {p.stem for p in FILES} == set(BUILT_IN)


@pytest.mark.parametrize("recipe", sorted((CONF / "recipe").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_composes_builds_and_says_how_it_is_run(recipe):
    """The second line is the command."""
    config = composed([f"recipe={recipe.stem}", "++input=x", "++output=y"], None)
    kinds = BUILT_IN.values()
    stages = [v["_target_"] for k, v in config.items() if k != "hydra" and hasattr(v, "get") and v.get("_target_")]
    assert stages
    assert set(stages) <= set(kinds)
    assert recipe.read_text().splitlines()[1].startswith(f"# curate recipe={recipe.stem}")
    assert config.name == recipe.stem


@pytest.mark.parametrize("experiment", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes_and_says_how_it_is_run(experiment):
    """The second line is the command; what it sweeps are settings that there are."""
    config = composed([f"experiment={experiment.stem}", "++input=x", "++output=y"], None)
    assert re.match(rf"# curate -m experiment={experiment.stem} ", experiment.read_text().splitlines()[1])
    for name in config.hydra.sweeper.params:
        stage, _, field = name.partition(".")
        assert field in config[stage]


def test_the_config_has_every_setting_with_its_default():
    """conf/config.yaml is the manual of what is no stage."""
    loaded = yaml.safe_load((CONF / "config.yaml").read_text())
    for name, field in Settings.model_fields.items():
        assert name == "cluster" or loaded[name] == field.default, name
    assert set(loaded) - set(Settings.model_fields) == {"defaults", "name", "sweep", "hydra"}


@pytest.mark.parametrize("cluster", ["auto", "local", "cuda"])
def test_every_cluster_composes_with_known_keys(cluster, tmp_path, monkeypatch):
    """Hydra's group and Curator's settings agree."""
    from curator.cluster import ClusterSettings

    config = composed([f"cluster={cluster}"], None)
    ClusterSettings(**config.cluster)
    assert config.cluster.kind == cluster


def test_a_stage_of_every_kind_tells_its_roles():
    """No field without a role among Curator's own: a forgotten one would measure again for nothing."""
    for target in BUILT_IN.values():
        kind = stage_class(target, "x", None)
        for name, field in fields_of(kind).items():
            assert isinstance(field.json_schema_extra, dict), f"{target}.{name} has no role"
            assert kind.role_of(name) in Role


def test_job_from_keeps_the_order_of_stages(tmp_path):
    """stages=[...] is also the order in which filters decide."""
    from curator.errors import ConfigError

    overrides = ["stages=[partition,read,embed,aesthetic,nsfw]", "++output=o"]
    config = composed(overrides, None)
    with contextlib.suppress(ConfigError):
        job_from(config, overrides, None)
    names = [k for k, v in config.items() if k != "hydra" and hasattr(v, "get") and v.get("_target_")]
    assert names == ["partition", "read", "embed", "aesthetic", "nsfw"]
    assert Path(CONF / "stages" / "nsfw.yaml").exists()
