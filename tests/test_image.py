"""The image, built and run as users do; only where it was asked for, since it takes ten minutes.

``PERFDEFICIT_IMAGE=build`` builds it first; any other value names an image that is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASKED = os.environ.get('PERFDEFICIT_IMAGE', '')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ASKED, reason='no image was asked for; set PERFDEFICIT_IMAGE to "build" or to its name'
    ),
    pytest.mark.skipif(
        not any(shutil.which(name) for name in ('docker', 'podman')),
        reason='neither docker nor podman is installed',
    ),
]


def test_the_image_does_what_the_app_does():
    image = ASKED
    if ASKED == 'build':
        image = 'bids_perfdeficit:latest'
        environ = {**os.environ, 'PYTHON': sys.executable, 'IMAGE': image}
        subprocess.run([ROOT / 'scripts' / 'build_image.sh'], check=True, env=environ)
    done = subprocess.run(
        [sys.executable, ROOT / 'scripts' / 'test_image.py', image],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
