"""Why a broker does not let a client in, in words for the person who can mend it.

librdkafka says of a certificate no more than that it cannot be verified, and of a broker that wants
TLS nothing at all: what is wrong is then asked of the broker by a handshake of our own.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable
from typing import Final

from confluent_kafka import KafkaError

from stream_scorer.config import Kafka

_TIMEOUT: Final = 1.0
_ASKED: Final = 3
"""The most addresses that are asked whether they speak TLS."""

_ADDRESS: Final = re.compile(r"^(?:\w+://)?([^/\s]+:\d+)/\w+: ")
_DURATION: Final = re.compile(r" \(after \d+ms in state \w+\)")
_OTHER_HOST: Final = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_OTHER_AUTHORITY: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's errors for a certificate whose authority is itself, not trusted or not known."""


def right_missing(*rights: str) -> str:
    """What is told of rights that the cluster's ACLs do not give."""
    return f"Kafka's ACLs do not allow {', '.join(rights)}"


_BY_CHANCE: Final = re.compile(
    "broker transport failure|timed out|failed to acquire sasl oauthbearer token", re.IGNORECASE
)
"""What interrupts an authentication, or keeps it from beginning, and says nothing of who we are."""

_OF_TLS: Final = re.compile("SSL alert|SSL routines::")
_CUT_OFF: Final = "unexpected eof"
"""A handshake that ended in the middle, as where a broker stops."""
_OUR_CERTIFICATE: Final = re.compile(r"SSL alert number (4[1-689]|116)\b")
"""The alerts of TLS (RFC 8446, 6.2) that are about the certificate that a client sends, or not."""


def is_refusal(error: KafkaError) -> bool:
    """Whether a connection failed for who we are, or who the broker is, and not by chance."""
    if _CUT_OFF in error.str():
        return False
    if error.code() == KafkaError._TRANSPORT:
        # TLS 1.3: what the broker thinks of our certificate comes after the handshake. And one that
        # is done before the client looks again fails as a connection (librdkafka 2.16.0).
        return _OF_TLS.search(error.str()) is not None
    if error.code() == KafkaError._AUTHENTICATION:
        return _BY_CHANCE.search(error.str()) is None
    return error.code() == KafkaError._SSL


def in_words(error: KafkaError, kafka: Kafka) -> str:
    """What a refusal means; asks the broker about its certificate. Names no secret."""
    found = _ADDRESS.match(error.str())
    address = found[1] if found else kafka.bootstrap
    cause = _DURATION.sub("", error.str()[found.end() :] if found else error.str())
    if error.code() == KafkaError._AUTHENTICATION:
        mechanism = kafka.common.get("sasl.mechanism") or kafka.common.get("sasl.mechanisms")
        if "mechanism handshake failed" in cause:
            return f"Kafka at {address} does not take sasl.mechanism {mechanism}: {cause}"
        if str(mechanism).upper().startswith(("PLAIN", "SCRAM")):
            return f"Kafka at {address} refused the user name or password: {cause}"
        return f"Kafka at {address} refused to let us in: {cause}"
    if _OUR_CERTIFICATE.search(cause):
        return (
            f"Kafka at {address} refused our certificate, or the lack of one "
            f"(ssl.certificate.location, ssl.key.location): {cause}"
        )
    if "certificate verify failed" not in cause:
        return f"no TLS with Kafka at {address}: {cause}"
    fault = _certificate_fault(address, kafka)
    if fault is None:
        return f"the certificate of Kafka at {address} is not trusted: {cause}"
    if fault.verify_code in _OTHER_HOST:
        return f"the certificate of Kafka at {address} is another host's: {fault.verify_message}"
    advice = ""
    if fault.verify_code in _OTHER_AUTHORITY:
        advice = "; set ssl.ca.location to the authority that signed it"
    return f"the certificate of Kafka at {address} is not trusted: {fault.verify_message}{advice}"


def wants_tls(kafka: Kafka) -> str | None:
    """The reason why plaintext does not work, where a broker's address speaks TLS instead."""
    protocol = str(kafka.common.get("security.protocol", "plaintext")).lower()
    if "ssl" in protocol:
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for address in _addresses(kafka.bootstrap):
        try:
            _shake_hands(address, context)
        except ssl.SSLError as error:
            if "ALERT" not in (error.reason or ""):
                continue  # no TLS, but something else
        except (OSError, ValueError):
            continue
        instead = "SASL_SSL" if "sasl" in protocol else "SSL or SASL_SSL"
        return f"Kafka at {address} wants TLS: security.protocol is {protocol}, set it to {instead}"
    return None


def _certificate_fault(address: str, kafka: Kafka) -> ssl.SSLCertVerificationError | None:
    authorities = kafka.common.get("ssl.ca.location")
    pem = kafka.common.get("ssl.ca.pem")
    try:
        context = ssl.create_default_context(
            cafile=str(authorities) if authorities else None, cadata=str(pem) if pem else None
        )
        # From Python 3.13 on it asks more of a certificate than librdkafka does.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        _shake_hands(address, context)
    except ssl.SSLCertVerificationError as fault:
        return fault
    except (OSError, ValueError):
        pass
    return None


def _shake_hands(address: str, context: ssl.SSLContext) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with (
        socket.create_connection((host, int(port)), _TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=host),
    ):
        pass


def _addresses(bootstrap: str) -> Iterable[str]:
    return [item.strip().rpartition("://")[2] for item in bootstrap.split(",")][:_ASKED]
