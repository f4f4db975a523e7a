"""The prefix index against a plain model of who holds what, and its bound."""

from collections import defaultdict
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.kv.tier import Tier
from forebay.routing.prefix_index import NO_MATCH, PrefixIndex, PrefixMatch

NODES, TIERS = ("n1", "n2", "n3"), (Tier.DEVICE, Tier.HOST)
NEAREST_FIRST = (Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.REMOTE)


def block_hash(number: int) -> bytes:
    return number.to_bytes(16, "big")


nodes, tiers = st.sampled_from(NODES), st.sampled_from(TIERS)
runs = st.lists(st.integers(0, 7).map(block_hash), max_size=5, unique=True)
operations = st.one_of(
    st.tuples(st.just("store"), nodes, tiers, runs),
    st.tuples(st.just("remove"), nodes, tiers, runs),
    st.tuples(st.just("move"), nodes, tiers, runs),
    st.tuples(st.just("replace"), nodes, tiers, runs),
    st.tuples(st.just("forget"), nodes, tiers, runs),
)


class Model:
    """Who holds what, without any cleverness."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, bytes], set[Tier]] = defaultdict(set)

    def store(self, node: str, tier: Tier, hashes: list[bytes]) -> None:
        for h in hashes:
            self.held[node, h].add(tier)

    def remove(self, node: str, tier: Tier, hashes: list[bytes]) -> None:
        for h in hashes:
            self.held[node, h].discard(tier)

    def forget(self, node: str) -> None:
        for key in [key for key in self.held if key[0] == node]:
            del self.held[key]

    def match(self, prompt: list[bytes]) -> dict[str, PrefixMatch]:
        matches = {}
        for node in NODES:
            run = list(takewhile(bool, (self.held[node, h] for h in prompt)))
            if run:
                matches[node] = PrefixMatch(len(run), frozenset(min(found, key=NEAREST_FIRST.index) for found in run))
        return matches


@settings(max_examples=500, deadline=None)
@given(st.lists(operations, max_size=30), runs)
def test_matches_are_those_of_the_model(script: list, prompt: list[bytes]) -> None:  # type: ignore[type-arg]
    index, model = PrefixIndex(), Model()
    for name, node, tier, hashes in script:
        other = Tier.HOST if tier is Tier.DEVICE else Tier.DEVICE
        match name:
            case "store":
                index.store(node, tier, hashes)
                model.store(node, tier, hashes)
            case "remove":
                index.remove(node, tier, hashes)
                model.remove(node, tier, hashes)
            case "move":
                index.move(node, tier, other, hashes)
                model.remove(node, tier, hashes)
                model.store(node, other, hashes)
            case "replace":
                index.replace(node, [(h, tier) for h in hashes])
                model.forget(node)
                model.store(node, tier, hashes)
            case "forget":
                index.forget(node)
                model.forget(node)
    assert dict(index.match(prompt)) == model.match(prompt)
    assert len(index) == len({h for (_, h), in_tiers in model.held.items() if in_tiers})


@given(st.lists(runs, max_size=40))
def test_the_bound_holds(batches: list[list[bytes]]) -> None:
    index = PrefixIndex(capacity=4)
    for hashes in batches:
        index.store("n1", Tier.DEVICE, hashes)
        assert len(index) <= 4


def test_what_was_asked_for_last_is_forgotten_last_and_from_its_end() -> None:
    index = PrefixIndex(capacity=6)
    old, used = [block_hash(i) for i in range(3)], [block_hash(i) for i in range(10, 13)]
    index.store("n1", Tier.DEVICE, used)
    index.store("n1", Tier.DEVICE, old)
    index.match(used)
    index.store("n1", Tier.DEVICE, [block_hash(20), block_hash(21)])
    assert index.match(old)["n1"].block_count == 1, "its end went first"
    assert index.match(used)["n1"].block_count == 3


def test_what_was_matched_and_then_removed_does_not_come_back() -> None:
    index = PrefixIndex(capacity=6)
    matched = [block_hash(i) for i in range(3)]
    index.store("n1", Tier.DEVICE, matched)
    index.match(matched)
    index.remove("n1", Tier.DEVICE, matched[1:])
    for number in range(10, 14):
        index.store("n1", Tier.DEVICE, [block_hash(number)])
        index.match([block_hash(number)])
    index.store("n1", Tier.DEVICE, [block_hash(i) for i in range(20, 23)])
    assert len(index) <= 6
    assert index.match(matched).get("n1", NO_MATCH).block_count <= 1


def test_a_hole_ends_the_match() -> None:
    index = PrefixIndex()
    index.store("n1", Tier.DEVICE, [block_hash(0), block_hash(2)])
    index.store("n2", Tier.HOST, [block_hash(0), block_hash(1), block_hash(2)])
    matches = index.match([block_hash(i) for i in range(3)])
    assert {node: match.block_count for node, match in matches.items()} == {"n1": 1, "n2": 3}
    assert matches["n2"] == PrefixMatch(3, frozenset({Tier.HOST}))
    assert not index.match([block_hash(9)])
    assert not index.match([])
