"""The catalog of GPUs: its peaks, and what is said of GPUs it does not have."""

import pytest

from fourlane.errors import SpecError
from fourlane.spec.hardware import gpu_models, load_gpu


@pytest.mark.parametrize(
    ("name", "bf16", "fast", "memory_gb", "memory_tbps", "scale_up_gbps"),
    [
        ("h100", 989, 1979, 80, 3.35, 450),
        ("h800", 989, 1979, 80, 3.35, 200),
        ("h200", 989, 1979, 141, 4.8, 450),
        ("h20", 148, 296, 96, 4.0, 450),
        ("a100", 312, None, 80, 2.04, 300),
        ("b200", 2250, 4500, 180, 7.7, 900),
        ("gb200", 2500, 5000, 186, 8.0, 900),
        ("ascend-910c", 752, 1504, 128, 3.2, 392),
    ],
)
def test_gpus_have_the_published_peaks(
    name: str, bf16: float, fast: float | None, memory_gb: float, memory_tbps: float, scale_up_gbps: float
) -> None:
    gpu = load_gpu(name)
    assert gpu.bf16_tflops == bf16
    assert (gpu.fp8_tflops or gpu.int8_tflops) == fast
    assert int(gpu.memory) == memory_gb * 1e9
    assert gpu.memory_rate.bytes_per_second == pytest.approx(memory_tbps * 1e12)
    assert gpu.nvlink.bytes_per_second == scale_up_gbps * 1e9


def test_every_gpu_says_where_its_figures_are_from_and_can_reach_less_than_its_line() -> None:
    for gpu in gpu_models().values():
        assert gpu.source
        assert gpu.nvlink_usable < gpu.nvlink


def test_names_of_gpus_may_be_written_as_people_do() -> None:
    assert load_gpu("Ascend 910C") is load_gpu("ascend-910c")


def test_an_unknown_gpu_names_the_likeliest() -> None:
    with pytest.raises(SpecError, match=r'got "h101" \(did you mean "h100"\?\)'):
        load_gpu("h101")


def test_a_gpu_without_a_datasheet_needs_a_profile_of_ones_own() -> None:
    with pytest.raises(SpecError, match=r"no official datasheet .* hardware profile of your own"):
        load_gpu("Kunlun P800")
