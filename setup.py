"""Builds the native library and the build report; everything else is in pyproject.toml.

FASTSSL_BUILD_CPP=0           pure Python install
FASTSSL_BUILD_CUDA=auto|0|1   CUDA sources too; auto: when nvcc and a CUDA torch are both there
MAX_JOBS, TORCH_CUDA_ARCH_LIST as in torch.utils.cpp_extension
"""

import os
import sys

from setuptools import setup

CPP_SOURCES = [
    "csrc/cpu/augment.cpp",
    "csrc/cpu/augment_parameters.cpp",
    "csrc/cpu/ema_update.cpp",
    "csrc/cpu/lars_step.cpp",
    "csrc/cpu/prototype_cross_entropy.cpp",
    "csrc/cpu/similarity_lse.cpp",
    "csrc/cpu/similarity_softplus.cpp",
    "csrc/cpu/similarity_topk.cpp",
    "csrc/cpu/sinkhorn.cpp",
    "csrc/cpu/isa/avx512.cpp",
    "csrc/cpu/isa/avx2.cpp",
    "csrc/cpu/isa/plain.cpp",
]
CUDA_SOURCES: list[str] = []  # no op is faster in CUDA C++ than in Triton yet

# torch's stable ABI, frozen at the oldest torch supported: one build serves every later one.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
CXX_FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]


def want_cuda() -> bool:
    choice = os.environ.get("FASTSSL_BUILD_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"FASTSSL_BUILD_CUDA must be auto, 0 or 1, not {choice!r}")
    if choice == "0" or (choice == "auto" and not CUDA_SOURCES):
        return False
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    able = CUDA_HOME is not None and torch.version.cuda is not None
    if choice == "1" and not able:
        sys.exit(
            f"FASTSSL_BUILD_CUDA=1 needs nvcc (found: {CUDA_HOME}) "
            f"and a CUDA build of torch (found: {torch.version.cuda})"
        )
    return able


def extensions() -> dict:
    if os.environ.get("FASTSSL_BUILD_CPP", "1") == "0":
        return {}
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    cuda = want_cuda()
    native = (CUDAExtension if cuda else CppExtension)(
        "fastssl._native",
        CPP_SOURCES + (CUDA_SOURCES if cuda else []),
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args={"cxx": CXX_FLAGS + STABLE_ABI, "nvcc": ["-O3", *STABLE_ABI]},
        py_limited_api=True,
    )
    build = CppExtension(
        "fastssl._build",
        ["csrc/python/build.cpp"],
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include()],
        extra_compile_args=["-O1", "-std=c++20"],
    )
    return {
        "ext_modules": [native, build],
        "cmdclass": {"build_ext": BuildExtension},
    }


setup(**extensions())
