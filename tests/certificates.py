"""Certificates made for one test run: an authority of its own, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

_VALID: Final = datetime.timedelta(days=1)


class Authority:
    """Signs certificates that are valid for a day.

    Args:
        folder: where everything it makes is written, in PEM.
        name: its own name, and that of its files.

    Attributes:
        certificate: the file with its certificate, for those who trust it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate = folder / f"{name}.pem"
        self._folder = folder
        self._name = _called(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = _begun(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate.write_bytes(
            made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        )

    def sign(self, name: str, *hosts: str, password: str | None = None) -> tuple[Path, Path]:
        """Make a certificate.

        Args:
            name: whose it is: its common name, and that of its files.
            hosts: the addresses and host names of a server; none for a client.
            password: what the key's file is encrypted with.

        Returns:
            The file of the certificate and that of its key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = _begun(_called(name), self._name, key)
        if hosts:
            made = made.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        certificate, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return certificate, key_file


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of a machine and of its containers may be a little apart.
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
