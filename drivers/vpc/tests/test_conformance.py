"""The conformance suite."""

import pytest

from terway_core.testing.conformance import DriverConformance

CIDRS = {4: ("172.20.1.0/28", "172.20.0.0/16"), 6: ("fd00:1::/124", "fd00::/16")}


class TestVpc(DriverConformance):
    mode = "vpc"
    supports_ipv6 = True
    supports_dual_stack = True

    @pytest.fixture
    def options(self, families):
        return {
            "pod_cidrs": [CIDRS[family][0] for family in families],
            "cluster_cidrs": [CIDRS[family][1] for family in families],
        }
