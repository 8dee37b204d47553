from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from stream_scorer.config import Kafka
from stream_scorer.kafka.refusals import in_words, is_refusal

BROKER = "sasl_ssl://kafka-1:9093/bootstrap: "


@pytest.mark.parametrize(
    ("code", "text", "refusal"),
    [
        (
            KafkaError._AUTHENTICATION,
            "SASL authentication error: invalid credentials (after 203ms in state AUTH_REQ)",
            True,
        ),
        # What follows is as the client words it when the broker or the network is at fault.
        (
            KafkaError._AUTHENTICATION,
            "SASL SCRAM-SHA-512 mechanism handshake failed: Local: Broker transport failure",
            False,
        ),
        (
            KafkaError._AUTHENTICATION,
            "Failed to acquire SASL OAUTHBEARER token: Failed to connect to identity.example",
            False,
        ),
        (KafkaError._AUTHENTICATION, "SASL handshake failed: Local: Timed out", False),
        (KafkaError._SSL, "SSL handshake failed: certificate verify failed", True),
        (KafkaError._TRANSPORT, "Receive failed: SSL transport error: SSL alert number 42", True),
        # A handshake that was over at the first look.
        (KafkaError._TRANSPORT, "error:0A000086:SSL routines::certificate verify failed", True),
        (KafkaError._TRANSPORT, "error:0A000126:SSL routines::unexpected eof", False),
        (KafkaError._SSL, "SSL handshake failed: SSL routines::unexpected eof", False),
        (KafkaError._TRANSPORT, "Connect to ipv4#127.0.0.1:9093 failed: refused", False),
    ],
)
def test_who_we_are_is_told_from_what_happens_by_chance(
    code: int, text: str, refusal: bool
) -> None:
    assert is_refusal(KafkaError(code, BROKER + text)) is refusal


def test_what_is_told_names_the_broker_and_leaves_out_how_long_it_took() -> None:
    kafka = Kafka.model_validate({"sasl.mechanism": "SCRAM-SHA-512"})
    text = BROKER + "SASL authentication error: no (after 203ms in state AUTH_REQ)"
    assert in_words(KafkaError(KafkaError._AUTHENTICATION, text), kafka) == (
        "Kafka at kafka-1:9093 refused the user name or password: SASL authentication error: no"
    )


def test_a_certificate_is_told_from_ours_by_whichever_code_it_comes() -> None:
    text = BROKER + "error:0A000086:SSL routines::certificate verify failed (after 2ms in state UP)"
    kafka = Kafka.model_validate({"ssl.ca.location": "/nowhere"})
    assert in_words(KafkaError(KafkaError._TRANSPORT, text), kafka) == (
        "the certificate of Kafka at kafka-1:9093 is not trusted: "
        "error:0A000086:SSL routines::certificate verify failed"
    )


@pytest.mark.parametrize("code", [KafkaError._SSL, KafkaError._TRANSPORT])
@pytest.mark.parametrize(
    ("alert", "told"),
    [
        (42, "Kafka at kafka-1:9093 refused our certificate, or the lack of one"),
        (116, "Kafka at kafka-1:9093 refused our certificate, or the lack of one"),
        (40, "no TLS with Kafka at kafka-1:9093"),
        (70, "no TLS with Kafka at kafka-1:9093"),
    ],
)
def test_an_alert_says_the_same_by_whichever_code_it_comes(
    code: int, alert: int, told: str
) -> None:
    error = KafkaError(
        code, f"{BROKER}error:0A000410:SSL routines::alert: SSL alert number {alert}"
    )
    assert in_words(error, Kafka()).startswith(told)
