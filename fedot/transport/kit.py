"""What a site gets from the owner: its certificate, and whom it can trust.

A kit is no secret: the key that belongs to it never left the site. It is checked whole when it is
read, and everything in it is bounded.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, ValidationError, model_validator

from fedot.config_errors import explain
from fedot.config_section import Section
from fedot.errors import ConfigError, FedotError, WireError
from fedot.transport.certificates import (
    fingerprint_of,
    key_from,
    name_of,
    not_after,
    public_key_of,
    read_small,
)
from fedot.transport.members import Role

__all__ = ["Kit", "read_kit"]


class Kit(Section):
    """What a site needs beside its key to talk to the server.

    Attributes:
        site: the name in the certificate.
        role: what the owner said that it may do; the server goes by its own list.
        certificate: the site's, then intermediates if it has any; PEM.
        ca: what the server's certificate is checked against; PEM.
        signing_key: the owner's Ed25519 public key, hex.
    """

    format: Literal["fedot-kit-1"] = "fedot-kit-1"
    site: str = Field(min_length=1, max_length=63)
    role: Role
    certificate: str = Field(max_length=2**16)
    ca: str = Field(max_length=2**16)
    signing_key: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        try:
            named = name_of(self.certificate.encode())
            for pem in (self.certificate, self.ca):
                x509.load_pem_x509_certificates(pem.encode())
        except (ValueError, FedotError) as error:
            raise ValueError("the kit holds a certificate that cannot be read.") from error
        if named != self.site:
            raise ValueError(f"the kit of {self.site} holds a certificate for somebody else.")
        return self

    def text(self) -> str:
        """The kit as a file has it."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """Of the certificate, as the owner admitted it."""
        return fingerprint_of(self.certificate.encode())

    @property
    def owner(self) -> str:
        """Fingerprint of whom this kit trusts: CA and signing key, in eight groups of four.

        A site compares it with the owner by phone before it uses its first kit: who could change
        the file on its way could stand for the owner. It is the same in all of an owner's kits.
        """
        roots = x509.load_pem_x509_certificates(self.ca.encode())
        trusted = b"".join(root.public_bytes(Encoding.DER) for root in roots)
        digits = sha256(bytes.fromhex(self.signing_key) + trusted).hexdigest()
        return "-".join(digits[n : n + 4] for n in range(0, 32, 4))

    def days_left(self, now: datetime) -> float:
        """Days until the certificate ends; below zero after that."""
        return (not_after(self.certificate.encode()) - now).total_seconds() / 86400

    def channel_credentials(self, key: Path) -> grpc.ChannelCredentials:
        """TLS for a channel to the server: it must show a certificate by this kit's CA.

        Args:
            key: the private key, which stayed here.

        Raises:
            ConfigError: the key cannot be read, or belongs to another certificate.
        """
        pem, certificate = read_small(key), self.certificate.encode()
        if key_from(pem, str(key)).public_key() != public_key_of(certificate):
            raise ConfigError(
                f"{key} is not the key of this kit's certificate; use the one that the request "
                "was made with, or ask the owner for a new kit."
            )
        return grpc.ssl_channel_credentials(self.ca.encode(), pem, certificate)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check that the owner signed these bytes.

        Raises:
            WireError: somebody else did, or one of both was changed.
        """
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key)).verify(
                signature, message
            )
        except (InvalidSignature, ValueError) as error:
            raise WireError(
                "a signature is not the model owner's; what it stands under was changed or comes "
                "from somebody else. Nothing of it is used; tell the model owner."
            ) from error


def read_kit(path: Path) -> Kit:
    """Read and check a kit.

    Raises:
        ConfigError: it is damaged, or its parts do not belong together.
    """
    try:
        return Kit.model_validate_json(read_small(path))
    except ValidationError as error:
        raise ConfigError(
            f"{path} cannot be used: {explain(error, Kit, 'the kit')} Ask the owner for it again."
        ) from error
