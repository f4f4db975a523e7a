"""What a mesh consists of: names, ports, command lines, and its record on disk."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import StartError
from forebay.host.process_identity import ProcessIdentity
from forebay.mesh.local_mesh import DRAIN_GRACE_S, DRAIN_S
from forebay.mesh.record import MeshRecord, ServiceRecord, read_record, remove_record, write_record
from forebay.mesh.spec import STOP_ORDER, MeshSpec
from forebay.rpc.settings import ServiceSettings

SPEC = MeshSpec(model_path=Path("/m.gguf"), state_dir=Path("/state"), threads=1)


def _command(spec: MeshSpec, name: str) -> tuple[str, ...]:
    return next(service.command for service in spec.services() if service.name == name)


def _value(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


@given(st.integers(1024, 60_000), st.integers(0, 10), st.integers(1, 10), st.integers(1, 4), st.integers(1, 4))
def test_names_and_ports_are_unique_and_local(
    port_base: int, prefill_count: int, decode_count: int, router_count: int, tokenizer_count: int
) -> None:
    spec = dataclasses.replace(
        SPEC,
        port_base=port_base,
        prefill_count=prefill_count,
        decode_count=decode_count,
        router_count=router_count,
        tokenizer_count=tokenizer_count,
    )
    services = spec.services()
    assert len(services) == 2 + prefill_count + decode_count + router_count + tokenizer_count
    assert len({service.name for service in services}) == len(services)
    assert len({service.address for service in services}) == len(services)
    assert all(service.address.startswith("127.0.0.1:") for service in services)
    assert {service.role for service in services} <= {role for roles in STOP_ORDER for role in roles}
    assert spec.router_address == f"127.0.0.1:{port_base}"


def test_every_service_is_told_where_the_others_are() -> None:
    spec = dataclasses.replace(SPEC, prefill_count=2)
    kvcache = next(service.address for service in spec.services() if service.name == "kvcache")
    nats = next(service.address for service in spec.services() if service.name == "nats")
    for service in spec.services():
        if service.role == "nats":
            assert _value(service.command, "-a") == "127.0.0.1"
            assert f"127.0.0.1:{_value(service.command, '-p')}" == nats
            assert _value(service.command, "-sd") == "/state/nats"
            continue
        assert service.command[1:3] == ("-m", f"forebay.{service.role}")
        assert _value(service.command, "--listen") == service.address
        assert _value(service.command, "--nats-url") == f"nats://{nats}"
        assert _value(service.command, "--node-id") == "local-7400"
        assert _value(service.command, "--state-dir") == "/state"
        if service.role in {"prefill", "decode"}:
            assert _value(service.command, "--kvcache") == kvcache
            assert _value(service.command, "--threads") == "1"


def test_only_what_is_given_is_passed_on() -> None:
    assert not {"--device-bytes", "--host-bytes", "--eviction-policy"} & set(_command(SPEC, "kvcache"))
    assert "--chip-class" not in _command(SPEC, "decode-0")
    spec = dataclasses.replace(
        SPEC,
        device_bytes=5,
        host_bytes=0,
        eviction_policy="lru",
        chip_class="cpu",
        extra_arguments={"decode": ("--max-sequences", "3")},
    )
    assert _value(_command(spec, "kvcache"), "--device-bytes") == "5"
    assert _value(_command(spec, "kvcache"), "--host-bytes") == "0"
    assert _value(_command(spec, "kvcache"), "--eviction-policy") == "lru"
    for name in ("kvcache", "prefill-0", "decode-0"):  # all three must agree on the format of KV
        assert _value(_command(spec, name), "--chip-class") == "cpu"
    assert _command(spec, "decode-0")[-2:] == ("--max-sequences", "3")
    assert "--max-sequences" not in _command(spec, "prefill-0")


def test_another_module_can_serve_a_role() -> None:
    spec = dataclasses.replace(SPEC, modules={"decode": "stand_in"})
    assert _value(_command(spec, "decode-0"), "-m") == "stand_in"
    assert _value(_command(spec, "prefill-0"), "-m") == "forebay.prefill"


def test_whoever_counts_in_money_is_told_what_it_costs() -> None:
    spec = dataclasses.replace(SPEC, fleet_file=Path("/fleet.yaml"))
    for name in ("prefill-0", "decode-0", "router"):
        assert _value(_command(spec, name), "--fleet-file") == "/fleet.yaml"
        assert "--fleet-file" not in _command(SPEC, name)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("port_base", 80, "--port-base"),
        ("port_base", 65_530, "--port-base"),
        ("prefill_count", -1, "--prefill"),
        ("prefill_count", 11, "--prefill"),
        ("decode_count", 0, "--decode"),
        ("threads", 0, "--threads"),
        ("device_bytes", 0, "--device-bytes"),
        ("host_bytes", -1, "--host-bytes"),
        ("name", "a-b", "name"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(field: str, value: object, flag: str) -> None:
    with pytest.raises(StartError, match=flag):
        dataclasses.replace(SPEC, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("fleet_file", [None, Path("/fleet.yaml")])
def test_the_record_survives_the_disk(tmp_path: Path, fleet_file: Path | None) -> None:
    services = tuple(
        ServiceRecord.of(service, ProcessIdentity(pid, pid + 1)) for pid, service in enumerate(SPEC.services(), 1)
    )
    record = MeshRecord.of(dataclasses.replace(SPEC, fleet_file=fleet_file), services, is_complete=True)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [file.name for file in tmp_path.iterdir()] == ["mesh.json"]
    remove_record(tmp_path)
    remove_record(tmp_path)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 1, "services": [{}]}'])
def test_a_record_that_makes_no_sense_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "mesh.json").write_text(content)
    with pytest.raises(StartError, match=r"mesh\.json"):
        read_record(tmp_path)


def test_the_time_that_down_tells_is_what_services_take() -> None:
    assert ServiceSettings.model_fields["drain_s"].default == DRAIN_S < DRAIN_GRACE_S
