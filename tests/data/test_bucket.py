import os
import subprocess
import sys

from tests.command_line import ROOT


def test_data_in_a_bucket():
    """In its own process, as what etils.epath does with gs:// is settled once a process."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.data.bucket'],
        cwd=ROOT,
        env=os.environ | {'EPATH_USE_TF': '0'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == 'all is well', done.stderr
