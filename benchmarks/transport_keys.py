"""A CA, a server and a client for one benchmark; every arm uses the same."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def usage(is_ca: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    others += ("crl_sign", "encipher_only", "decipher_only")
    rest = dict.fromkeys(others, False)
    return x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, **rest)


def sign(name: str, issuer: Signer | None) -> Signer:
    """A certificate for `name`, by `issuer`, or by itself as a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(usage(is_ca=issuer is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signing = issuer[1] if issuer else key
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = builder.add_extension(authority, critical=False)
    if issuer:
        names: list[x509.GeneralName] = [x509.DNSName("localhost" if name == "server" else name)]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing, hashes.SHA256()), key


def write_keys(folder: Path) -> None:
    """Write NAME.crt and NAME.key of ca, server and client."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = sign("ca", None)
    signed = {name: sign(name, authority) for name in ("server", "client")}
    for name, (certificate, key) in {"ca": authority, **signed}.items():
        pem = serialization.Encoding.PEM
        folder.joinpath(f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        folder.joinpath(f"{name}.key").write_bytes(private)
