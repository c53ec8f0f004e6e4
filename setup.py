"""Build of the one C part: ``matrixfs.fuse._libfuse`` (all else stands in pyproject.toml).

Its sources are in ``matrixfs/fuse/extension``, which isn't named as the module is: Python would import the directory.
``optional``: without a compiler or libfuse3's headers the package still installs, and mounts say what they lack
(``matrixfs/fuse/libfuse.py``).  pyfuse3 is itself built from source against libfuse3, so a machine that can run
MatrixFS can build this.
"""

from __future__ import annotations

import shlex
import subprocess
from glob import glob

from setuptools import Extension, setup


def pkg_config(flag: str, fallback: str) -> list[str]:
    """What pkg-config says about fuse3 for ``flag``; Debian's layout when pkg-config is missing."""
    try:
        text = subprocess.run(["pkg-config", flag, "fuse3"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        text = fallback
    return shlex.split(text)


setup(
    ext_modules=[
        Extension(
            "matrixfs.fuse._libfuse",
            sources=sorted(glob("matrixfs/fuse/extension/*.c")),
            depends=["matrixfs/fuse/extension/extension.h"],
            extra_compile_args=[
                "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror=implicit-function-declaration",
                *pkg_config("--cflags", "-I/usr/include/fuse3"),
            ],
            extra_link_args=[*pkg_config("--libs", "-lfuse3"), "-ldl"],
            optional=True,
        ),
    ],
)
