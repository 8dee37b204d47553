"""Files that librdkafka cannot use are named, with the reason, and nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from http_facade.client import check_properties as check_facade_properties
from stream_scorer.config import ConfigError
from stream_scorer.kafka.clients import check_properties
from tests.certificates import Authority
from tests.engine import settings_for

SECRET = "canary-0a4de1"  # noqa: S105 - of files that live as long as the test


def refusal(**properties: object) -> str:
    changed = {name.replace("_", "."): value for name, value in properties.items()}
    settings = settings_for("", {}, kafka={"security.protocol": "SSL", **changed})
    told = []
    for check in (check_properties, check_facade_properties):
        with pytest.raises(ConfigError) as raised:
            check(settings)
        told.append(str(raised.value))
        assert raised.value.exit_code == 2
    assert SECRET not in " ".join(told)
    return told[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    assert refusal(ssl_ca_location=path.as_posix()) == (
        f"{path}: No such file or directory @ kafka.ssl.ca.location"
    )


def test_a_file_that_holds_no_certificate(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(SECRET)
    told = refusal(ssl_ca_location=path.as_posix())
    assert told.startswith(f"{path} cannot be used: ")
    assert told.endswith(" @ kafka.ssl.ca.location")


def test_a_key_whose_password_is_wrong(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path, "authority").sign("worker", password="correct")  # noqa: S106
    told = refusal(
        ssl_certificate_location=certificate.as_posix(),
        ssl_key_location=key.as_posix(),
        ssl_key_password=SECRET,
    )
    assert told.startswith(f"{key} cannot be used (is ssl.key.password right?): ")
    assert told.endswith(" @ kafka.ssl.key.location")


def test_a_key_in_the_conf_is_not_quoted() -> None:
    assert "ssl.key.pem" in refusal(ssl_key_pem=SECRET)


def test_a_user_without_a_password() -> None:
    assert "sasl.password" in refusal(security_protocol="SASL_SSL", sasl_mechanism="PLAIN")
