"""Links between the workers of two nodes: who gets one, and how they are kept."""

import gevent
import pytest
from conftest import free_port, until


@pytest.fixture
def node(start):
    """Starts nodes of one worker each, on addresses of their own."""
    port = free_port()

    def node(host: str, **options):
        return start(node_host=host, node_port=port, **options)

    return node


def knows(one, other) -> bool:
    """Whether a node has a link to another one in advance."""
    return one.rendezvous.nodes.workers().get(other.rendezvous.presence.name, 1) < 1


def test_nodes_find_each_other(node):
    one, two = node('127.0.0.1'), node('127.0.0.2')
    until(lambda: knows(one, two) and knows(two, one), 'both have links')
