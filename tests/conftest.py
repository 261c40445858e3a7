"""What all tests share: the recorded market data (where present), hypothesis profiles, the `slow` marker."""
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from objects import bucket, lax_bucket, store_server  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

# `ci` draws the same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("ci", derandomize=True, max_examples=60, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# A shell that starts us in the background lets us, and all that we start, ignore Ctrl-C: tests send it on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds (leave out with -m 'not slow')")


@pytest.fixture(scope="session")
def shared_bronze() -> Path:
    "Recorded bronze partitions, `channel/exchange=/symbol=/year=/month=/day=/data.parquet`; not in the repository."
    path = ROOT.parent / "shared" / "data" / "bronze"
    if not path.is_dir(): pytest.skip("recorded market data (../shared/data/bronze) is not on this machine")
    return path
