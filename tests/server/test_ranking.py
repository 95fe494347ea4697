"""Rankings: ordered decisions for one customer, each an ordinary entry of the log."""

from tests.server.harness import Peer
from server.pb import bandit_pb2 as pb


def test_x(peer: Peer):
    outcome = {"window": 3600, "exposure": "confirmed", "rewards": [{"name": "click"}]}
    name = peer.create("x", outcome=outcome)
    a = peer.decisions.Rank(pb.RankRequest(experiment=name, request_id="r", customer_id="c", count=5, include_removed=True))
    print(a)
    b = peer.decisions.Rank(pb.RankRequest(experiment=name, request_id="r", customer_id="c", count=5, include_removed=True))
    print(b)
    assert 0
