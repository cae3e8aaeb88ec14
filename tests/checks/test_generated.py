"""Generated files that are committed are what their generators write."""
import pathlib
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def test_wgmma_functions_are_up_to_date():
    subprocess.run([sys.executable, SOURCE / "kernels/common/make_wgmma.py", "--check"], check=True)
