"""Folding, rounding to fixed point, and the certificate."""

from ge2mst_jax.convert.certificate import (
    Certificate,
    CertificateError,
    LayerCertificate,
    certify,
    check_network,
    check_reference,
    compare_executions,
)
from ge2mst_jax.convert.deploy import DeployedNet, accuracy, deploy, digest_of, fold
from ge2mst_jax.convert.drift import Drift, measure_drift
from ge2mst_jax.convert.fixed_point import ConversionError, CurrentFormat
from ge2mst_jax.convert.reference import reference
from ge2mst_jax.convert.storage import CheckpointError, load_net, save_net

__all__ = [
    "Certificate",
    "CertificateError",
    "CheckpointError",
    "ConversionError",
    "CurrentFormat",
    "DeployedNet",
    "Drift",
    "LayerCertificate",
    "accuracy",
    "certify",
    "check_network",
    "check_reference",
    "compare_executions",
    "deploy",
    "digest_of",
    "fold",
    "load_net",
    "measure_drift",
    "reference",
    "save_net",
]
