"""The roster: who is a member, through losses of the bucket."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.fleet.member import Member
from forebay.fleet.roster import Roster
from forebay.role import Role

GRACE_S = 6.0


def member(worker_id: str, *, is_draining: bool = False) -> Member:
    return Member(worker_id, Role.DECODE, "127.0.0.1:1", "n", is_draining=is_draining)


def test_only_news_count_as_changes() -> None:
    roster = Roster(GRACE_S)
    assert roster.put(member("a"))
    assert not roster.put(member("a"))
    assert roster.put(member("a", is_draining=True))
    assert roster.delete("a")
    assert not roster.delete("a")
    assert not roster.resync([], 0.0)
    assert roster.resync([member("b")], 0.0)
    assert not roster.resync([member("b")], 0.0)


def test_an_emptied_bucket_does_not_empty_the_roster() -> None:
    roster = Roster(GRACE_S)
    roster.put(member("lives"))
    roster.put(member("died"))
    assert not roster.resync([], 10.0)
    assert set(roster.members) == {"lives", "died"}
    assert roster.next_expiry_s == 16.0
    roster.put(member("lives"))
    assert not roster.expire(15.9)
    assert roster.expire(16.0)
    assert set(roster.members) == {"lives"}
    assert roster.next_expiry_s is None


def test_a_second_resync_does_not_lengthen_the_grace() -> None:
    roster = Roster(GRACE_S)
    roster.put(member("a"))
    roster.resync([], 0.0)
    roster.resync([], 5.0)
    assert roster.expire(6.0)


operations = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc")),
    st.tuples(st.just("delete"), st.sampled_from("abc")),
    st.tuples(st.just("resync"), st.sets(st.sampled_from("abc"))),
    st.tuples(st.just("pass"), st.floats(0, 4)),
)


@given(st.lists(operations, max_size=30))
def test_the_roster_ends_equal_to_the_bucket(script: list) -> None:  # type: ignore[type-arg]
    """`bucket` is the truth; a resync reads it, and may find it changed without having been told."""
    roster, bucket, now_s = Roster(GRACE_S), set(), 0.0
    for name, argument in script:
        match name:
            case "put":
                bucket.add(argument)
                roster.put(member(argument))
            case "delete":
                bucket.discard(argument)
                roster.delete(argument)
            case "resync":
                bucket = set(argument)
                roster.resync(map(member, argument), now_s)
            case "pass":
                now_s += argument
                roster.expire(now_s)
        assert bucket <= set(roster.members), "who is in the bucket is in the roster"
    roster.expire(now_s + GRACE_S)
    assert set(roster.members) == bucket
    assert roster.next_expiry_s is None


def started(worker_id: str, incarnation: int, address: str = "127.0.0.1:1") -> Member:
    return Member(worker_id, Role.DECODE, address, "n", incarnation=incarnation)


def test_who_serves_at_an_address_since_ends_who_served_there_before() -> None:
    roster = Roster(GRACE_S)
    assert roster.put(started("killed", 1))
    assert roster.put(started("elsewhere", 1, "127.0.0.1:2"))
    assert roster.put(started("again", 2))
    assert set(roster.members) == {"elsewhere", "again"}
    assert not roster.put(started("killed", 1)), "its record is still there, and is read anew"
    assert not roster.resync([started("again", 2), started("killed", 1), started("elsewhere", 1, "127.0.0.1:2")], 0.0)
    assert set(roster.members) == {"elsewhere", "again"}
    assert roster.next_expiry_s is None


def test_of_unknown_age_or_another_role_both_stay() -> None:
    roster = Roster(GRACE_S)
    roster.put(member("old"))
    roster.put(started("new", 2))
    roster.put(Member("prefill", Role.PREFILL, "127.0.0.1:1", "n", incarnation=3))
    assert set(roster.members) == {"old", "new", "prefill"}
