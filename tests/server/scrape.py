"""Reading the metrics port of a server, as Prometheus and Kubernetes do."""

import urllib.error
import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import Peer


class Page(NamedTuple):
    """What a page of the metrics port answered."""

    status: int
    text: str


def page(peer: Peer, path: str) -> Page:
    assert peer.server.endpoint is not None
    url = f"http://127.0.0.1:{peer.server.endpoint.port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return Page(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Page(error.code, error.read().decode())


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(peer: Peer) -> Samples:
    """Give every sample by name and labels."""
    found = page(peer, "/metrics")
    assert found.status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Give the sum over all samples of a name that have these labels."""
    wanted = set(labels.items())
    return sum(v for (n, found), v in samples.items() if n == name and wanted <= found)
