"""The `forebay` command against real processes, as a user types it."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forebay.client import Client
from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import segments_of
from forebay.mesh.port import free_port_base
from forebay.mesh.record import MeshRecord, read_record

QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Shell:
    """Runs `forebay` with a state folder and ports of its own."""

    state_dir: Path
    port_base: int

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FOREBAY_STATE_DIR": str(self.state_dir)}

    def run(self, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "forebay.cli", *arguments]
        return subprocess.run(
            command, input=typed, capture_output=True, text=True, env=self.environment, timeout=120, check=False
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "forebay.cli", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def up(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.run("up", *arguments, "--port-base", str(self.port_base))

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def record(self) -> MeshRecord:
        record = read_record(self.state_dir)
        assert record is not None
        return record


def assert_nothing_left(record: MeshRecord) -> None:
    assert not [service.name for service in record.services if service.process.is_running()]
    assert segments_of(record.node_id) == []


@dataclass(frozen=True)
class Ended:
    """A command that was run in the background."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def ups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, list[Ended]]]:
    """Two `forebay up` at once in one shell, each with the question; the mesh is stopped at the end."""
    shell = Shell(tmp_path_factory.mktemp("state"), free_port_base(37_400))
    running = [shell.start("up", QUESTION, "--port-base", str(shell.port_base)) for _ in range(2)]
    try:
        words = [starting.communicate(timeout=120) for starting in running]
        yield shell, [Ended(one.returncode, *said) for one, said in zip(running, words, strict=True)]
    finally:
        record = read_record(shell.state_dir)
        down = shell.run("down")
    assert down.returncode == 0, down.stderr
    if record is not None:
        assert_nothing_left(record)


@pytest.fixture(scope="module")
def shell(ups: tuple[Shell, list[Ended]]) -> Shell:
    """A shell in which the mesh is up."""
    return ups[0]


def test_up_starts_the_mesh_and_answers(ups: tuple[Shell, list[Ended]]) -> None:
    for ended in ups[1]:
        assert ended.exit_code == 0, ended.stderr
        assert "Paris" in ended.stdout
        assert re.search(r"\nTTFT \d+ ms · .* tokens/s · .* · trace [0-9a-f]{32}\n", ended.stderr)


def test_two_at_once_start_one_mesh(ups: tuple[Shell, list[Ended]]) -> None:
    """The second waits for the first and finds its mesh."""
    errors = [ended.stderr for ended in ups[1]]
    assert sum("starting nats" in words for words in errors) == 1
    assert sum("waiting for another forebay" in words for words in errors) == 1


def test_a_second_up_keeps_what_runs_and_finds_the_prefix(shell: Shell) -> None:
    before = shell.record
    again = shell.json("up", QUESTION)
    assert "Paris" in again["completion"]["text"]
    assert again["completion"]["usage"]["cached_tokens"] > 0
    assert shell.record == before


def test_up_refuses_another_mesh_in_the_same_place(shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    for arguments in (
        ("--model", str(other)),
        ("--decode", "2"),
        ("--port-base", "9000"),
        ("--chip-class", "cpu-f32"),
        ("--threads", "1"),
        ("--device-bytes", "64M"),
    ):
        refused = shell.run("up", *arguments)
        assert refused.returncode == 2
        assert re.fullmatch(
            rf"forebay: the mesh that is up has .* for {arguments[0]}, not .* down, or .*\n", refused.stderr
        )


def test_status_tells_of_every_service(shell: Shell) -> None:
    status = shell.json("status")
    assert status["healthy"]
    services = {service["name"]: service for service in status["services"]}
    assert set(services) == {"nats", "kvcache", "tokenizer", "prefill-0", "decode-0", "router"}
    assert all(service["health"] == "serving" and service["pss_bytes"] > 0 for service in services.values())
    assert services["decode-0"]["load"]["queued_sequences"] == 0
    table = shell.run("status").stdout.splitlines()
    assert table[0].split() == ["service", "pid", "address", "health", "pss", "rss", "load"]
    tiers = {one["tier"]: one["size_bytes"] for one in status["shared_memory"]}
    assert set(tiers) == {"device", "host"}
    processes_bytes = sum(service["pss_bytes"] for service in services.values())
    assert max(processes_bytes, sum(tiers.values())) < status["occupied_bytes"] < processes_bytes + sum(tiers.values())
    assert [line.split()[0] for line in table[1:]] == [*services, "device", "host", "all"]


def test_generate_reads_stdin_streams_and_prints_json(shell: Shell) -> None:
    flags = ("--temperature", "0", "--max-tokens", "8")
    streamed = shell.run("generate", "-", *flags, typed="1, 2, 3,")
    whole = shell.run("generate", "1, 2, 3,", "--no-stream", *flags)
    result = shell.json("generate", "1, 2, 3,", "--logprobs", "2", *flags)
    assert streamed.stdout == whole.stdout == result["text"] + "\n"
    assert len(result["token_ids"]) == len(result["logprobs"]) == 8
    assert [len(entry["alternatives"]) for entry in result["logprobs"]] == [2] * 8
    assert result["finish_reason"] == "length"


def test_chat_keeps_the_conversation(shell: Shell) -> None:
    flags = ("--temperature", "0", "--max-tokens", "16")
    one = shell.run("chat", "Say hello.", *flags)
    both = shell.run("chat", *flags, typed="Say hello.\n\nAnd now goodbye.\n")
    assert one.returncode == both.returncode == 0
    assert both.stdout.startswith(one.stdout)
    assert len(both.stdout) > len(one.stdout)
    prompt_tokens = [int(count) for count in re.findall(r"of (\d+) prompt tokens", both.stderr)]
    assert len(prompt_tokens) == 2
    assert prompt_tokens[1] > prompt_tokens[0] + 16


def _read_until(terminal: int, words: str) -> str:
    """What the terminal shows, up to and including the words."""
    shown = ""
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"no {words!r} in {shown!r}"
        shown += os.read(terminal, 1024).decode()
    return shown


def test_ctrl_c_stops_the_answer_not_the_conversation(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "forebay.cli", "chat", "--ignore-eos", "--max-tokens", "3000"]
        os.execve(command[0], command, {**shell.environment, "TERM": "dumb"})
    try:
        _read_until(terminal, "> ")
        os.write(terminal, b"\x03")
        _read_until(terminal, "> ")
        os.write(terminal, b"Tell me a story.\n")
        _read_until(terminal, "story.\r\n")
        assert os.read(terminal, 1)  # the answer has begun
        os.write(terminal, b"\x03")
        assert "Traceback" not in _read_until(terminal, "(stopped)\r\n> ")
        os.write(terminal, b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("",), r"EMPTY_PROMPT, field text"),
        (("x", "--temperature", "-1"), r"INVALID_FIELD, field sampling\.temperature"),
        (("x", "--max-tokens", "0"), r"INVALID_FIELD, field sampling\.max_tokens"),
        (("x", "--model", "other"), r"UNKNOWN_MODEL, field model"),
    ],
)
def test_refusals_are_one_line_with_reason_and_field(shell: Shell, arguments: tuple[str, ...], reason: str) -> None:
    refused = shell.run("generate", *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(rf"forebay: [^\n]+ \({reason}\)\n", refused.stderr)


def test_trace_shows_the_request(shell: Shell) -> None:
    trace_id = shell.json("generate", "A trace", "--max-tokens", "2", "--mode", "split")["trace_id"]
    lines = shell.run("trace", trace_id[:12]).stdout
    assert all(name in lines for name in (trace_id, "router", "tokenizer", "prefill", "kvcache", "decode"))
    spans = shell.json("trace", "--last")
    assert {span["trace_id"] for span in spans} == {trace_id}
    listed = shell.run("trace", "--limit", "1").stdout
    assert listed.startswith(trace_id)
    unknown = shell.run("trace", "0" * 32)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("forebay: no trace 000")


def test_ctrl_c_cancels_the_request_and_frees_it(shell: Shell) -> None:
    with shell.start("generate", "Count on:", "--ignore-eos", "--request-id", "interrupted") as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(1)
        asking.send_signal(signal.SIGINT)
        assert asking.wait(30) == 130
        assert asking.stderr is not None
        assert "Traceback" not in asking.stderr.read()
    with Client(shell.record.router_address) as client:  # the id is free again as soon as the request is gone
        assert client.generate("x", request_id="interrupted", max_tokens=1, timeout_s=20).token_ids


def test_a_taken_port_is_one_line(shell: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path, free_port_base(47_400))
    with socket.create_server(("127.0.0.1", other.port_base + 10)):
        refused = other.up()
    assert refused.returncode == 2
    assert re.fullmatch(
        rf"forebay: port {other.port_base + 10} \(prefill-0\) is taken by .*\(pid {os.getpid()}\).*\n", refused.stderr
    )
    assert read_record(tmp_path) is None


def test_a_broken_model_is_one_line_and_leaves_nothing(shell: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path / "state", free_port_base(47_400))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refused = other.up("--model", str(tmp_path / "broken.gguf"))
    assert refused.returncode == 2
    assert "broken.gguf" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert read_record(other.state_dir) is None


def test_ctrl_c_during_up_leaves_nothing(shell: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path, free_port_base(47_400))
    with other.start("up", "--port-base", str(other.port_base)) as starting:
        assert starting.stderr is not None
        assert starting.stderr.readline().startswith("starting nats, ")
        record = other.record
        starting.send_signal(signal.SIGINT)
        assert starting.wait(60) == 130, starting.stderr.read()
    assert len(record.services) == 6
    assert_nothing_left(record)
    assert read_record(tmp_path) is None


def kill(process: ProcessIdentity) -> None:
    pidfd = os.pidfd_open(process.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], 30)
    os.close(pidfd)


def test_up_starts_a_killed_service_again_and_its_request_goes_on(shell: Shell) -> None:
    before = {service.name: service.process for service in shell.record.services}
    with shell.start("generate", "Count on:", "--ignore-eos", "--max-tokens", "900") as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(1)
        kill(before["decode-0"])
        status = shell.run("status")
        assert status.returncode == 1
        assert re.search(r"^decode-0 .* gone", status.stdout, re.MULTILINE)
        assert re.search(r"starts them again: .* up$", status.stderr.strip())
        mended = shell.run("up", QUESTION)  # with all that the mesh was started with
        assert mended.returncode == 0, mended.stderr
        assert "not healthy (decode-0 gone)" in mended.stderr
        assert "starting decode-0 again; the rest goes on" in mended.stderr
        assert "Paris" in mended.stdout
        assert asking.wait(60) == 0, asking.stderr and asking.stderr.read()
    after = {service.name: service.process for service in shell.record.services}
    assert {name for name, process in after.items() if process != before[name]} == {"decode-0"}
    assert all(process.is_running() for process in after.values())
    assert (shell.state_dir / "logs" / "decode-0-before.log").is_file()


def test_without_nats_up_starts_anew(shell: Shell) -> None:
    """What it leaves is another mesh."""
    before = shell.record
    kill(next(service.process for service in before.services if service.name == "nats"))
    anew = shell.run("up", QUESTION)
    assert anew.returncode == 0, anew.stderr
    assert shell.record.port_base == before.port_base
    assert "nats gone" in anew.stderr
    assert "starting it anew" in anew.stderr
    assert "Paris" in anew.stdout
    assert not [service.name for service in before.services if service.process.is_running()]
    assert all(service.process.is_running() for service in shell.record.services)


def test_down_says_what_it_waits_for(shell: Shell) -> None:
    """Takes the mesh down."""
    with (
        shell.start("generate", "Count on:", "--ignore-eos", "--max-tokens", "6000") as asking,
        Client(shell.record.router_address) as client,
    ):
        assert asking.stdout is not None
        assert asking.stdout.read(1)  # it runs; the load told until now may be of a request before it
        until_s = time.monotonic() + 30
        while not any(member.load and member.load.running_sequences for member in client.fleet().members):
            assert time.monotonic() < until_s
        with shell.start("down") as stopping:
            assert stopping.stderr is not None
            assert stopping.stderr.readline() == "waiting for 1 running request, at most 10 s\n"
            asking.send_signal(signal.SIGINT)
            assert stopping.wait(30) == 0


def test_down_twice_and_commands_without_a_mesh(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "none", free_port_base(47_400))
    stopped = shell.run("down")
    assert stopped.returncode == 0
    assert stopped.stderr.startswith(f"nothing to stop: no mesh was started in {shell.state_dir}; ")
    assert re.search(r" FOREBAY_STATE_DIR=\S+ .* down\n$", stopped.stderr)
    assert shell.run("down").returncode == 0
    assert not shell.state_dir.exists()
    status = shell.run("status")
    assert status.returncode == 2
    assert re.fullmatch(
        rf"forebay: no mesh runs in {shell.state_dir}; .* up; .* FOREBAY_STATE_DIR=\S+ .* status\n", status.stderr
    )
    assert json.loads(shell.run("status", "--json").stdout) == {
        "healthy": False,
        "mesh": None,
        "services": [],
        "shared_memory": [],
        "occupied_bytes": 0,
    }
    refused = shell.run("generate", "x", "--target", f"127.0.0.1:{shell.port_base}")
    assert refused.returncode == 1
    assert "is the mesh up? ./scripts/up" in refused.stderr


def test_wrong_usage_is_told_before_anything_is_started(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "none", free_port_base(47_400))
    refused = shell.up("--chip-class", "abacus")
    assert refused.returncode == 2
    assert re.fullmatch(r"forebay: unknown chip class 'abacus'; choose one of: .*\n", refused.stderr)
    assert not (shell.state_dir / "logs").exists()
    short = shell.up("--device-bytes", "1K")
    assert short.returncode == 2
    assert re.fullmatch(r"forebay: --device-bytes 1024 has no room for one KV block .*\n", short.stderr)
    assert not (shell.state_dir / "logs").exists()
    for arguments in (("trace", "--limit", "0"), ("trace", "abc", "--last")):
        assert shell.run(*arguments).returncode == 2
    assert re.fullmatch(r"forebay \d+\.\d+\.\d+\n", shell.run("--version").stdout)


def test_input_that_is_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"Once \xff\xfe")
    command = [sys.executable, "-m", "forebay.cli", "generate", "-"]
    with binary.open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "forebay: standard input is not UTF-8 text: byte 5 (INVALID_FIELD, field text)\n"
