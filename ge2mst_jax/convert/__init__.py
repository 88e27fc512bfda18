"""Folding to integers, the certificate, the reference, networks on disk and exported."""

from ge2mst_jax.convert.certificate import (
    Certificate,
    CertificateError,
    LayerCertificate,
    certify,
    check_network,
    check_reference,
    compare_executions,
)
from ge2mst_jax.convert.convertible import LOSSLESS, check_convertible, check_neuron
from ge2mst_jax.convert.deploy import (
    EXECUTED,
    DeployedNet,
    accuracy,
    deploy,
    digest_of,
    fold,
)
from ge2mst_jax.convert.drift import Drift, measure_drift
from ge2mst_jax.convert.export import ExportedNet, export_net, load_exported, save_exported
from ge2mst_jax.convert.fixed_point import ConversionError, CurrentFormat
from ge2mst_jax.convert.rate import rate_coded
from ge2mst_jax.convert.reference import reference
from ge2mst_jax.convert.shapes import deployed_shapes
from ge2mst_jax.convert.storage import CheckpointError, load_net, save_net

__all__ = [
    "EXECUTED",
    "LOSSLESS",
    "Certificate",
    "CertificateError",
    "CheckpointError",
    "ConversionError",
    "CurrentFormat",
    "DeployedNet",
    "Drift",
    "ExportedNet",
    "LayerCertificate",
    "accuracy",
    "certify",
    "check_convertible",
    "check_network",
    "check_neuron",
    "check_reference",
    "compare_executions",
    "deploy",
    "deployed_shapes",
    "digest_of",
    "export_net",
    "fold",
    "load_exported",
    "load_net",
    "measure_drift",
    "rate_coded",
    "reference",
    "save_exported",
    "save_net",
]
