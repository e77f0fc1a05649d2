from __future__ import annotations

import pytest
import torch

from afm_scale.estimate.devices import GPUS, Gpu, known_gpu, peak_flops


@pytest.mark.parametrize(("name", "gpu"), [
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA GH200 480GB", "gh200"),
    ("NVIDIA L40S", "l40s"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA B200", "b200"),
    ("NVIDIA H100 PCIe", None), ("NVIDIA H200 NVL", None), ("NVIDIA GeForce RTX 4090", None), ("Tesla V100", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
])
def test_a_gpu_is_known_by_its_driver_s_name_if_its_peak_is(
    name: str, gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_gpu(name) == gpu
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    wanted = None if gpu is None else GPUS[gpu].tflops * 1e12
    assert peak_flops(torch.device("cuda", 0)) == wanted


def test_a_cpu_has_no_peak_in_the_table() -> None:
    assert peak_flops(torch.device("cpu")) is None


def test_figures_of_the_table_fit_each_other() -> None:
    """Operations for each byte of memory lie in a narrow band for GPUs of a kind; a slip of a digit falls out of it."""
    for gpu in GPUS.values():
        assert 100 < gpu.tflops / gpu.bandwidth < 450 and gpu.source != Gpu.source
        assert gpu.tflops_fp32 is not None and 3 < gpu.tflops / gpu.tflops_fp32 <= 40
        assert 15 < 1e3 * gpu.bandwidth / gpu.memory < 60
