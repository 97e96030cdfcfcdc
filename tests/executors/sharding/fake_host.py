"""`python -m tests.executors.sharding.fake_host JOB.json`: the host of a job, with the fake engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from executors.host import main
from tests.executors.sharding.conftest import use_fake

use_fake(pytest.MonkeyPatch(), Path(sys.argv[1]).parents[1] / "generated")
os._exit(main(sys.argv[1:]))
