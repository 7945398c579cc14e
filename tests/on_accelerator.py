"""`make test-accelerator`: levels L1 to L3 and a short benchmark on a GPU or TPU, where JAX finds one."""

from __future__ import annotations

import os
import subprocess
import sys

PROBE = "import jax; print(jax.default_backend(), jax.device_count(), jax.devices()[0].client.platform_version)"
LEVELS = ("test_exact.py", "test_fitting.py", "test_reproduce.py", "test_doctor.py")
"""L3 and the golden integers; L2; L1 and L3, and what a planted flip does; the references."""


def main() -> int:
    """Exit code 0 where all holds, and where there is nothing to test on; that is said."""
    probed = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if probed.returncode:
        print(f"JAX does not start here: {probed.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 6
    backend, count, version = probed.stdout.strip().split(" ", 2)
    if backend == "cpu":
        print("No GPU or TPU here that JAX can use: nothing was tested. It needs an extra of jaxmlp (README).")
        return 0
    platform = backend if backend == "tpu" else "rocm" if "rocm" in version else "cuda"
    print(f"{count} {platform} device{'s' if count != '1' else ''}")
    if count == "1":
        print("L3 between numbers of devices is not tested: it needs two.")
    folder = os.path.dirname(__file__)
    tests = [sys.executable, "-m", "pytest", *(os.path.join(folder, name) for name in LEVELS)]
    bench = [sys.executable, "-m", "jaxmlp", "bench", "--suite", "quick"]
    # Tests start processes of their own, which share the device's memory.
    environment = os.environ | {"JAXMLP_TEST_DEVICE": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    tested = subprocess.run(tests, env=environment, check=False).returncode
    return subprocess.run(bench, check=False).returncode or tested


if __name__ == "__main__":
    sys.exit(main())
