import pytest

from terway_core.testing.conformance import DriverConformance

CIDRS = {(4,): "10.9.0.0/28", (6,): "fd00:9::/124"}


class TestExample(DriverConformance):
    mode = "example"
    supports_ipv6 = True

    @pytest.fixture
    def options(self, families):
        return {"cidr": CIDRS[families]}
