"""Settings: file, environment, and messages that say where the mistake is."""

import contextlib
import re
import runpy
import socket
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from terway_core import config as module
from terway_core.config import CloudConfig, Config, load_config
from terway_core.errors import InvalidConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    """Write a configuration file; return its path."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_need_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "absent.yaml")
    config = load_config(env={})
    assert config == Config()
    assert config.node_name == socket.gethostname()
    assert config.socket == Path("/run/terway/terway.sock")
    assert config.spool == Path("/var/lib/terway/spool")
    assert config.database == Path("/var/lib/terway/terway.db")


def test_default_file_is_read_when_it_is_there(write, monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_PATH", write("mtu: 1400"))
    assert load_config(env={}).mtu == 1400


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_no_mistake(write, text):
    assert load_config(write(text), env={}) == Config()


def test_file_sets_every_kind_of_field(write):
    path = write(
        """
        drivers: [trunking, vpc]
        options: {vpc: {pod_cidrs: [172.20.1.0/24], masquerade: false}}
        vpc_cidrs: [10.0.0.0/8, "fd00::/8"]
        state_dir: /srv/terway
        gc_interval: 7.5
        cloud: {protocol: http, credentials_file: /etc/terway/key.json}
        """
    )
    config = load_config(path, env={})
    assert config.drivers == ("trunking", "vpc")
    assert config.options == {"vpc": {"pod_cidrs": ["172.20.1.0/24"], "masquerade": False}}
    assert config.vpc_cidrs == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert config.database == Path("/srv/terway/terway.db")
    assert config.gc_interval == 7.5
    assert config.cloud == CloudConfig(protocol="http", credentials_file=Path("/etc/terway/key.json"))


def test_no_vpc_cidrs_is_not_the_same_as_none_given(write):
    assert load_config(write("{}"), env={}).vpc_cidrs is None
    assert load_config(write("vpc_cidrs: []"), env={}).vpc_cidrs == ()


def test_environment_comes_on_top_of_the_file(write):
    env = {
        "TERWAY_DRIVERS": "trunking, eniip_veth",
        "TERWAY_MTU": "1400",
        "TERWAY_STATE_DIR": "/srv/terway",
        "TERWAY_SERVICE_CIDRS": "[172.21.0.0/20]",
        "TERWAY_CLOUD": "{protocol: http}",
        "TERWAY_UNHEARD_OF": "ignored: it may be another program's",
        "MTU": "1",
    }
    config = load_config(write("mtu: 9000\nworkers: 3\ncloud: {region_id: cn-beijing}"), env)
    assert (config.mtu, config.workers) == (1400, 3)
    assert config.drivers == ("trunking", "eniip_veth")
    assert config.state_dir == Path("/srv/terway")
    assert config.service_cidrs == (ip_network("172.21.0.0/20"),)
    assert config.cloud == CloudConfig(protocol="http")


@pytest.mark.parametrize("name", ["1234", "0x10", "1e3", "no", "null", "a: b", "[n]", "10.0.0.1", "*n"])
def test_text_from_the_environment_is_taken_as_it_stands(name):
    assert load_config(env={"TERWAY_CONFIG": "/dev/null", "TERWAY_NODE_NAME": name}).node_name == name


def test_terway_config_names_the_file(write):
    assert load_config(env={"TERWAY_CONFIG": str(write("mtu: 1400"))}).mtu == 1400
    other = write("mtu: 1300")
    assert load_config(other, env={"TERWAY_CONFIG": "/does/not/exist"}).mtu == 1300


@pytest.mark.parametrize("env", [{}, {"TERWAY_CONFIG": "config.yaml"}])
def test_a_file_that_was_asked_for_must_exist(tmp_path, monkeypatch, env):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match=r"config\.yaml does not exist"):
        load_config(None if env else Path("config.yaml"), env)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InvalidConfig, match=re.escape(f"{tmp_path} cannot be read")):
        load_config(tmp_path, env={})


def test_bytes_that_are_no_text(write, tmp_path):
    path = write("")
    path.write_bytes(b"node_name: \xff\xfe")
    with pytest.raises(InvalidConfig, match=re.escape(str(path))):
        load_config(path, env={})


@pytest.mark.parametrize(
    "text", ["[a, b]", "mtu", "1: 2", "mtu: [1", "a: b: c", "\ttab: 1", "!!python/name:os"]
)
def test_what_is_no_mapping_names_the_file(write, text):
    path = write(text)
    with pytest.raises(InvalidConfig) as caught:
        load_config(path, env={})
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("mtu: 1279", "mtu"),
        ("mtu: 65536", "mtu"),
        ("mtu: big", "mtu"),
        ("mtu:", "mtu"),
        ("workers: 0", "workers"),
        ("gc_interval: 0", "gc_interval"),
        ("log_level: loud", "log_level"),
        ("cni_version: 0.2.0", "cni_version"),
        ("cni_version: 1.0", "cni_version"),
        ("network: 'a/b'", "network"),
        ("network: ''", "network"),
        ("drivers: 7", "drivers"),
        ("drivers: [{vpc: }]", "drivers.0"),
        ("options: {vpc: 1}", "options.vpc"),
        ("vpc_cidrs: [10.0.0.1/8]", "vpc_cidrs.0"),
        ("service_cidrs: 172.21.0.0/20", "service_cidrs"),
        ("state_dir: [a]", "state_dir"),
        ("cloud: {protocol: ftp}", "cloud.protocol"),
        ("cloud: {regionid: x}", "cloud.regionid"),
        ("driver: vpc", "driver"),
    ],
)
def test_a_wrong_value_names_file_and_field(write, text, field):
    path = write(text)
    with pytest.raises(InvalidConfig) as caught:
        load_config(path, env={})
    assert str(path) in caught.value.message
    assert f" {field}" in caught.value.message


def test_a_wrong_cidr_is_one_mistake(write):
    with pytest.raises(InvalidConfig, match=r"yaml: vpc_cidrs\.0: [^;]*10\.0\.0\.1/8[^;]*$"):
        load_config(write("vpc_cidrs: [10.0.0.1/8]"), env={})


def test_all_mistakes_are_named_at_once(write):
    with pytest.raises(InvalidConfig, match=r"mtu: .*; workers: ") as caught:
        load_config(write("mtu: 1\nworkers: 0"), env={})
    assert caught.value.cni_code == 7


@pytest.mark.parametrize(("value", "problem"), [("[1", "is not YAML"), ("big", "mtu ")])
def test_a_wrong_variable_is_named(write, value, problem):
    with pytest.raises(InvalidConfig, match=problem) as caught:
        load_config(write(""), {"TERWAY_MTU": value})
    assert "TERWAY_MTU" in caught.value.message


values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)) | st.text(), values))
def test_any_mapping_is_settings_or_a_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(data))
    with contextlib.ExitStack() as stack:
        if not acceptable(data):
            stack.enter_context(pytest.raises(InvalidConfig, match=re.escape(str(path))))
        load_config(path, env={})


def acceptable(data):
    try:
        Config.model_validate(data)
    except ValidationError:
        return False
    return True


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Config().mtu = 1


def test_page_is_what_the_models_say():
    page = runpy.run_path(str(ROOT / "tests/configuration_page.py"))
    written = page["PAGE"].read_text()
    assert written == page["render"](), "write it anew: python tests/configuration_page.py"
    assert all(f"| `{name}` |" in written for name in [*Config.model_fields, *CloudConfig.model_fields])


def test_example_of_the_page_is_good(write):
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)[1]
    assert load_config(write(example), env={}).drivers == ("vpc",)
