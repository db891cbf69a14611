"""Device names: one sentence for every name that does not work here, before torch is asked."""

import subprocess
import sys

import pytest
import torch

from brushbench.devices import choose_device, choose_dtype
from brushbench.errors import UnknownNameError, UsageError


@pytest.mark.parametrize(
    "name", ["mps", "xpu", "meta", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:" + "9" * 5000, "", "cpu:0"]
)
def test_a_device_torch_knows_but_we_do_not_support_is_one_sentence(name):
    with pytest.raises(UsageError, match="Write auto, cpu, cuda or cuda:1"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_cuda_without_a_gpu_names_what_works(name):
    with pytest.raises(UsageError, match="Write auto or cpu"):
        choose_device(name)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")  # the remedy


def test_auto_dtype_follows_the_device_and_a_typo_is_named():
    assert choose_dtype("auto", torch.device("cuda")) is torch.float16
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(UnknownNameError, match="Known: auto, bfloat16, float16, float32"):
        choose_dtype("fp16", torch.device("cpu"))


def test_checking_the_cpu_loads_no_torch():
    code = "import sys, brushbench.devices as d; d.check_device('cpu'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
