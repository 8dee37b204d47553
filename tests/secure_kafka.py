"""A real Kafka that lets in who proves who he is, by password or certificate, and by its ACLs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.certificates import Authority
from tests.kafka_server import KafkaServer, free_ports

_TIMEOUT: Final = 30.0
_ITERATIONS: Final = 4096

_LISTENERS: Final = {"SCRAM": "SASL_SSL", "ELSEWHERE": "SASL_SSL", "MUTUAL": "SSL"}


class SecureKafka(KafkaServer):
    """A node with ACLs, where nobody may do what none of them allows.

    Its plaintext listener is the administrator's. Beside it there are three others:

    Attributes:
        scram: TLS, and a user's name and password (SCRAM-SHA-512).
        elsewhere: the same, with a certificate that is made out to another host.
        mutual: TLS with a certificate from the client too; its common name is who that is.
        authority: whose certificates are trusted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scram = self.elsewhere = self.mutual = ""
        self.authority = Authority(self.folder, "authority")
        here, elsewhere = (
            self._keystore("broker", "localhost", "127.0.0.1"),
            self._keystore("another-broker", "kafka.example"),
        )
        self._keystores = {"SCRAM": here, "ELSEWHERE": elsewhere, "MUTUAL": here}

    @property
    def administrator(self) -> AdminClient:
        """A client that may do everything."""
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def add_users(self, passwords: Mapping[str, str]) -> None:
        """Make users for the listeners with passwords, or give them others."""
        admin = self.administrator
        changed = admin.alter_user_scram_credentials(
            [
                UserScramCredentialUpsertion(
                    name,
                    ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS),
                    password.encode(),
                )
                for name, password in passwords.items()
            ]
        )
        for future in changed.values():
            future.result(_TIMEOUT)

    def allow(self, rights: Iterable[AclBinding]) -> None:
        """Give rights, and return once they hold."""
        admin = self.administrator
        for right, future in admin.create_acls([*rights]).items():
            future.result(_TIMEOUT)
            self._wait(admin, right, there=True)

    def take_back(self, right: AclBinding) -> None:
        """Take back a right that was given, and return once it is gone."""
        admin = self.administrator
        for future in admin.delete_acls([_only(right)]).values():
            future.result(_TIMEOUT)
        self._wait(admin, right, there=False)

    def _wait(self, admin: AdminClient, right: AclBinding, *, there: bool) -> None:
        # The broker hears of what the controller has written a moment later.
        deadline = time.monotonic() + _TIMEOUT
        while bool(admin.describe_acls(_only(right)).result(_TIMEOUT)) is not there:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{right} does not change")
            time.sleep(0.02)

    def _keystore(self, name: str, *hosts: str) -> Path:
        certificate, key = self.authority.sign(name, *hosts)
        keystore = self.folder / f"{name}.keystore.pem"
        keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
        return keystore

    def _add_listeners(self, properties: dict[str, str]) -> None:
        addresses = {
            name: f"127.0.0.1:{port}"
            for name, port in zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True)
        }
        self.scram, self.elsewhere, self.mutual = addresses.values()
        for name, address in addresses.items():
            protocol = _LISTENERS[name]
            for listeners in ("listeners", "advertised.listeners"):
                properties[listeners] += f",{name}://{address}"
            properties["listener.security.protocol.map"] += f",{name}:{protocol}"
            own = f"listener.name.{name.lower()}"
            properties[f"{own}.ssl.keystore.type"] = "PEM"
            properties[f"{own}.ssl.keystore.location"] = str(self._keystores[name])
            if protocol == "SASL_SSL":
                properties[f"{own}.sasl.enabled.mechanisms"] = "SCRAM-SHA-512"
                properties[f"{own}.scram-sha-512.sasl.jaas.config"] = (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                )
            else:
                properties[f"{own}.ssl.client.auth"] = "required"
                properties[f"{own}.ssl.truststore.type"] = "PEM"
                properties[f"{own}.ssl.truststore.location"] = str(self.authority.certificate)
                properties[f"{own}.ssl.principal.mapping.rules"] = "RULE:^CN=(.*)$/$1/"
        properties |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            # Who comes in plaintext, as the node itself does.
            "super.users": "User:ANONYMOUS",
        }


def _only(right: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        right.restype,
        right.name,
        right.resource_pattern_type,
        right.principal,
        right.host,
        right.operation,
        right.permission_type,
    )
