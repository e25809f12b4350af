"""Settings: which source wins, and that a wrong value is refused with its name, value and limit."""

from pathlib import Path

import pytest
from spacegrid.config import (
    NodeConfig,
    check,
    is_loopback,
    join_address,
    load,
    parse_size,
    split_address,
    split_etcd,
)
from spacegrid.errors import ConfigError


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\ncopies = 3\nlog_level = "debug"\nname = "from-file"\n')
    environ = {"SPACEGRID_COPIES": "4", "SPACEGRID_NAME": "from-environment"}
    settings = load({"name": "from-flag", "copies": None}, environ=environ, file=file)
    assert (settings.name, settings.copies, settings.log_level) == ("from-flag", 4, "debug")
    assert settings.partitions == NodeConfig().partitions


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("copies = 1\nunits = ['shop:Shop', 'shop:Orders']\n")
    settings = load({}, environ={"SPACEGRID_CONFIG": str(file)})
    assert settings.copies == 1
    assert settings.units == ("shop:Shop", "shop:Orders")


def test_a_node_without_a_name_is_called_by_its_port() -> None:
    assert load({"listen": "127.0.0.1:7801"}, environ={}).name == "node-7801"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("listen", "0.0.0.0:7700", "not loopback"),
        ("tls_cert", "node-1.pem", "tls_ca and tokens not set"),
        ("tokens", "tokens", "tls_ca and tls_cert not set"),
        ("listen", "192.0.2.1:7700", "not loopback"),
        ("listen", "7700", "host:port"),
        ("listen", "127.0.0.1:70000", "65535"),
        ("coordinator", "zookeeper://127.0.0.1:2181", "local://host:port"),
        ("coordinator", "etcd://127.0.0.1", "host:port"),
        ("coordinator", "etcd://127.0.0.1:2379/a/b", "letters, digits"),
        ("coordinator", "etcds://", "etcd://host:port"),
        ("zone", "rack 1", "letters, digits"),
        ("nodes", 1001, "allowed is 0 to 1000"),
        ("units", ["shop"], "module:Class"),
        ("partitions", 0, "allowed is 1 to 65535"),
        ("partitions", "many", "'many' is not a whole number"),
        ("copies", 9, "allowed is 1 to 7"),
        ("min_in_sync", 3, "allowed is 0 to 2"),
        ("quota_bytes", "lots", "512MiB"),
        ("transfer_bytes_per_s", "2TiB", "allowed is 0 to 1099511627776"),
        ("busy_poll_us", 10_001, "allowed is 0 to 10000"),
        ("pump_interval_s", -1, "allowed is 0.0 to"),
        ("lmdb", "perhaps", "true, false"),
        ("log_format", "xml", "console, json"),
        ("name", "two words", "letters, digits"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(name: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load({name: value}, environ={})
    assert says in str(raised.value)


def test_the_source_of_a_wrong_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SPACEGRID_PARTITIONS"):
        load({}, environ={"SPACEGRID_PARTITIONS": "x"})
    file = tmp_path / "node.toml"
    file.write_text("partitions = 'x'\n")
    with pytest.raises(ConfigError, match=r"node\.toml"):
        load({}, environ={}, file=file)


def test_unknown_settings_and_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("partition = 3\n")
    with pytest.raises(ConfigError, match="unknown setting 'partition'"):
        load({}, environ={}, file=file)
    file.write_text("= 3\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load({}, environ={}, file=file)
    with pytest.raises(ConfigError, match="can't read"):
        load({}, environ={}, file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("1k", 1000), (7, 7)],
)
def test_sizes_read_with_either_kind_of_prefix(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_a_write_needs_two_copies_unless_told_otherwise() -> None:
    assert check(NodeConfig(copies=3)).write_copies == 2
    assert check(NodeConfig(copies=1)).write_copies == 1
    assert check(NodeConfig(copies=3, min_in_sync=3)).write_copies == 3


SECURED = {"tls_ca": "ca.crt", "tls_cert": "node-1.pem", "tokens": "tokens"}


def test_a_public_address_needs_tls_and_tokens_and_the_error_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="--tls-ca, --tls-cert and --tokens") as raised:
        load({"listen": "192.0.2.1:7700"}, environ={})
    assert "read and change everything" in str(raised.value)
    settings = load({"listen": "192.0.2.1:7700", **SECURED}, environ={})
    assert settings.tls_cert == Path("node-1.pem")
    assert settings.name == "", "the certificate names the node"


def test_security_comes_from_environment_and_file_as_well(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nlisten = "192.0.2.1:7700"\ntls_ca = "a"\ntls_cert = "b"\n')
    settings = load({}, environ={"SPACEGRID_TOKENS": "c"}, file=file)
    assert (settings.tls_ca, settings.tls_cert, settings.tokens) == tuple(map(Path, "abc"))


def test_etcd_over_tls_is_shown_the_nodes_own_certificate() -> None:
    asked = {"coordinator": "etcds://192.0.2.1:2379", "listen": "192.0.2.1:7700", **SECURED}
    settings = load(asked, environ={})
    assert (settings.etcd_ca, settings.etcd_cert) == (settings.tls_ca, settings.tls_cert)
    assert settings.etcd_key == settings.tls_cert
    told = {"etcd_ca": "etcd-ca.crt", "etcd_cert": "etcd.crt", "etcd_key": "etcd.key"}
    settings = load({**asked, **told}, environ={})
    assert (settings.etcd_ca, settings.etcd_key) == (Path("etcd-ca.crt"), Path("etcd.key"))


def test_the_authority_alone_in_the_environment_is_a_clients() -> None:
    settings = load({}, environ={"SPACEGRID_TLS_CA": "ca.crt"})
    assert settings.tls_cert is None


def test_the_override_lets_a_public_address_through_and_has_to_be_asked_for() -> None:
    settings = load({"listen": "192.0.2.1:7700", "insecure_let_anyone_in": True}, environ={})
    assert settings.insecure_let_anyone_in
    assert not NodeConfig().insecure_let_anyone_in


def test_an_address_that_nobody_can_reach_is_not_given_to_others() -> None:
    for listen in ("0.0.0.0:7700", "[::]:7700"):
        with pytest.raises(ConfigError, match="--advertise"):
            load({"listen": listen, **SECURED}, environ={})
        settings = load({"listen": listen, "advertise": "db-1.example", **SECURED}, environ={})
        assert settings.advertised_host == "db-1.example"
    assert join_address("::1", 7700) == "[::1]:7700"
    assert join_address("127.0.0.1", 7700) == "127.0.0.1:7700"


def test_loopback_is_what_no_other_machine_can_reach() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.10")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert split_address("[::1]:7700") == ("::1", 7700)


def test_other_addresses_of_nodes_are_read_and_checked() -> None:
    given = load({"via": ["node-2=127.0.0.1:9", "node-3=127.0.0.1:8"]}, environ={})
    assert given.via_addresses == {"node-2": "127.0.0.1:9", "node-3": "127.0.0.1:8"}
    for wrong in ("node-2", "=127.0.0.1:9", "node-2=127.0.0.1"):
        with pytest.raises(ConfigError, match="host:port"):
            check(NodeConfig(via=(wrong,)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"etcd_ca": "ca.pem"}, "without TLS\nhint: use etcds://"),
        ({"coordinator": "etcds://a:1", "etcd_key": "k"}, "etcd_cert and etcd_key"),
        ({"etcd_user": "grid"}, "etcd_user and etcd_password_file"),
    ],
)
def test_settings_for_etcd_that_do_not_go_together_are_refused(
    settings: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load({"coordinator": "etcd://127.0.0.1:2379", **settings}, environ={})


def test_the_address_of_etcd_names_members_and_space() -> None:
    assert split_etcd("etcd://a:1,b:2/shop") == (False, ("a:1", "b:2"), "shop")
    assert split_etcd("etcds://a:1") == (True, ("a:1",), "default")


def test_what_was_given_is_told_from_what_was_left() -> None:
    settings = load({"copies": 2, "partitions": None}, environ={"SPACEGRID_NAME": "a"})
    assert settings.given == {"copies", "name"}
