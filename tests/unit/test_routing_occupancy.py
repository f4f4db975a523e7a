"""How full the fleet is, and which workers are kept for one request: against a count made anew each time."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.kv.layout import KvDtype, KvLayout
from forebay.role import Role
from forebay.routing.admission import Room
from forebay.routing.fleet import FleetSnapshot, Worker
from forebay.routing.occupancy import LAST_WANTED_S, WANTED_IDLE_S, Occupancy

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=1, kv_heads=1, head_dim=64)
NAMES = ("d1", "d2", "d3")


def decode(name: str, *, is_draining: bool = False, max_sequences: int = 4) -> Worker:
    return Worker(name, Role.DECODE, "node", "digest", LAYOUT, max_sequences, is_draining)


def fleet_of(*names: str) -> FleetSnapshot:
    return FleetSnapshot((), tuple(map(decode, names)))


def open_names(occupancy: Occupancy, now_s: float = 0.0) -> list[str]:
    return [one.worker_id for one in occupancy.open_fleet(now_s).decode]


_CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("note"), st.sampled_from(NAMES), st.integers(0, 6), st.booleans()),
        st.tuples(st.just("isolate"), st.sampled_from("rs"), st.sampled_from(NAMES)),
        st.tuples(st.just("open_up"), st.sampled_from("rs")),
        st.tuples(st.just("follow"), st.lists(st.sampled_from(NAMES), unique=True)),
        st.tuples(st.just("keep"), st.lists(st.sampled_from(NAMES), unique=True)),
    ),
    max_size=40,
)


@given(_CHANGES)
def test_the_running_counts_are_those_of_a_count_made_anew(changes: list[tuple]) -> None:  # type: ignore[type-arg]
    occupancy, members = Occupancy(), list(NAMES)
    sequences: dict[str, int] = {}
    isolated: set[str] = set()
    alone: dict[str, str] = {}
    occupancy.follow(fleet_of(*members))
    for kind, *values in changes:
        if kind == "note":
            name, count, is_isolated = values
            occupancy.note(name, count, is_isolated=is_isolated)
            sequences[name] = count
            (isolated.add if is_isolated else isolated.discard)(name)
        elif kind == "isolate":
            occupancy.isolate(*values)
            alone[values[0]] = values[1]
        elif kind == "open_up":
            occupancy.open_up(*values)
            isolated.discard(alone.pop(values[0], ""))
        elif kind == "follow":
            members = sorted(values[0])
            occupancy.follow(fleet_of(*members))
        else:
            occupancy.keep(values[0])
            sequences = {name: count for name, count in sequences.items() if name in values[0]}
            isolated &= set(values[0])
        closed = isolated | set(alone.values())
        taken = sum(max(4, sequences.get(name, 0)) if name in closed else sequences.get(name, 0) for name in members)
        idle = [name for name in members if not sequences.get(name) and name not in closed]
        assert occupancy.room(0.0) == Room(4 * len(members), taken, len(idle))
        assert open_names(occupancy) == [name for name in members if name not in closed]
        assert [one.worker_id for one in occupancy.idle_fleet().decode] == idle


def test_a_draining_worker_has_no_places() -> None:
    occupancy = Occupancy()
    occupancy.follow(FleetSnapshot((), (decode("d1"), decode("d2", is_draining=True))))
    occupancy.note("d2", 3, is_isolated=False)
    assert occupancy.room(0.0) == Room(4, 0, 1)


def test_the_least_busy_is_kept_free_while_one_is_wanted_and_the_last_after_a_while() -> None:
    occupancy = Occupancy()
    occupancy.follow(fleet_of("d1", "d2"))
    occupancy.note("d1", 2, is_isolated=False)
    occupancy.note("d2", 1, is_isolated=False)
    occupancy.want_idle(now_s=10.0)
    assert open_names(occupancy, 10.5) == ["d1"]
    occupancy.note("d2", 3, is_isolated=False)
    assert open_names(occupancy, 10.6) == ["d1"], "the same one, or none would become idle"
    assert open_names(occupancy, 10.0 + WANTED_IDLE_S) == ["d1", "d2"]
    occupancy.follow(fleet_of("d1"))
    for now_s in (20.0, 20.9, 21.8, 22.7):
        occupancy.want_idle(now_s)
    assert open_names(occupancy, 20.0 + LAST_WANTED_S - 0.1) == ["d1"]
    assert open_names(occupancy, 20.0 + LAST_WANTED_S) == []
    assert occupancy.room(20.0 + LAST_WANTED_S) == Room(4, 4, 0)
    occupancy.note("d1", 0, is_isolated=False)
    assert occupancy.room(20.0 + LAST_WANTED_S) == Room(4, 4, 1, kept_idle=1)
    assert open_names(occupancy, 22.7 + WANTED_IDLE_S) == ["d1"]


def test_a_worker_that_tells_no_places_has_one() -> None:
    occupancy = Occupancy()
    occupancy.follow(FleetSnapshot((), (decode("d1", max_sequences=0),)))
    assert occupancy.room(0.0) == Room(1, 0, 1)


def test_another_is_kept_free_when_one_is_wanted_anew() -> None:
    occupancy = Occupancy()
    occupancy.follow(fleet_of("d1", "d2"))
    occupancy.note("d1", 2, is_isolated=False)
    occupancy.note("d2", 1, is_isolated=False)
    occupancy.want_idle(now_s=10.0)
    assert open_names(occupancy, 10.5) == ["d1"]
    occupancy.note("d2", 3, is_isolated=False)
    occupancy.want_idle(now_s=20.0)
    assert open_names(occupancy, 20.5) == ["d2"], "the least busy now"


def test_a_worker_that_takes_no_company_is_not_the_one_kept_free() -> None:
    occupancy = Occupancy()
    occupancy.follow(fleet_of("d1", "d2"))
    occupancy.isolate("poison", "d1")
    occupancy.note("d2", 1, is_isolated=False)
    for now_s in (10.0, 10.9, 11.8):
        occupancy.want_idle(now_s)
    assert open_names(occupancy, 10.0 + LAST_WANTED_S - 0.1) == ["d2"], "the last that is open is kept free only then"
    assert open_names(occupancy, 10.0 + LAST_WANTED_S) == []
