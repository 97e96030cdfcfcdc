"""GPU products as device plugins write them into node labels."""

from __future__ import annotations

from mloc_dagster.spec.gpu import same_device

_PRODUCTS = (
    "Tesla-T4", "Tesla-P100-PCIE-16GB", "Tesla-V100-PCIE-16GB", "Tesla-V100-PCIE-32GB",
    "Tesla-V100-SXM2-16GB", "Tesla-V100-SXM2-32GB", "Tesla-V100-SXM3-32GB",
    "NVIDIA-L4", "NVIDIA-L40", "NVIDIA-L40S", "NVIDIA-A10", "NVIDIA-A10G", "NVIDIA-A30", "NVIDIA-A40",
    "NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-80GB-PCIe",
    "NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H200", "NVIDIA-B200",
    "NVIDIA-GeForce-RTX-3090", "NVIDIA-GeForce-RTX-4090", "NVIDIA-GeForce-RTX-5090",
    "AMD_Instinct_MI300X_OAM", "AMD_Instinct_MI250X",
)  # fmt: skip
"""Values of `nvidia.com/gpu.product` (the driver's product names, blanks as `-`), `amd.com/gpu.product-name`."""

MAKERS = {
    "nvidia.com": {"gpu_resource": "nvidia.com/gpu", "gpu_label": "nvidia.com/gpu.product"},
    "amd.com": {"gpu_resource": "amd.com/gpu", "gpu_label": "amd.com/gpu.product-name"},
}
"""Who makes GPUs, as resources and labels begin, and what their device plugins are called by."""


def products_of(name: str) -> list[str]:
    """Return the values that stand for a device such as a100-80gb; a name without a size stands for all sizes."""
    return [product for product in _PRODUCTS if same_device(name, product)]


def maker_of(name: str) -> str:
    """Return who makes a device, a key of MAKERS; empty when it is not known."""
    found = products_of(name)
    return ("amd.com" if found[0].startswith("AMD") else "nvidia.com") if found else ""
