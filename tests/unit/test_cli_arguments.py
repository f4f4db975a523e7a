"""What the command line means: commands, flags, hints, exit codes, figures."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.cli.__main__ import main
from forebay.cli.answer import figures, tokens_per_second
from forebay.cli.parsing import byte_count
from forebay.cli.request_flags import add_request_flags, request_options
from forebay.cli.up import DEVICE_BYTES_HELP, HOST_BYTES_HELP
from forebay.client import Completion, ExecutionMode, FinishReason, Plan, RequestOptions, Timings, Usage
from forebay.client.request import build_request
from forebay.kv.eviction.policies import DEFAULT_POLICY
from forebay.kvcache.config import KvCacheSettings
from forebay.mesh.log_tail import last_words

COMMANDS = ("up", "down", "status", "generate", "chat", "explain", "kv", "trace")


def _exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(name, "--help") == 0
    output = capsys.readouterr().out
    assert f"usage: forebay {name}" in output
    assert f"examples:\n  forebay {name}" in output


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_overview_names_every_command(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(*arguments) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in COMMANDS)


def test_unknown_words_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("dance") == 2
    assert capsys.readouterr().err.startswith("forebay: there is no command 'dance'; there are up, ")
    assert _exit_code("up", "--modle", "x") == 2
    assert _exit_code("generate") == 2


def test_up_tells_the_defaults_of_the_service_it_starts() -> None:
    fields = KvCacheSettings.model_fields
    for name, words in (("device_bytes", DEVICE_BYTES_HELP), ("host_bytes", HOST_BYTES_HELP)):
        default = words.partition("(default: ")[2].rstrip(")")
        assert byte_count(default) == fields[name].default
    assert fields["kept_after_uses"].default == 2, "as the help says"
    assert fields["eviction_policy"].default == DEFAULT_POLICY


def test_the_command_line_starts_without_heavy_packages() -> None:
    blocked = ["torch", "pydantic", "nats", "opentelemetry.sdk", "numpy", "grpc"]
    program = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from forebay.cli.__main__ import main\n"
        "main(['--help'])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_every_request_option_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_request_flags(parser)
    without_flag = {"gather_ms"}  # set by who reads along
    assert set(vars(parser.parse_args([]))) == set(RequestOptions.__annotations__) - without_flag


def test_flags_arrive_in_the_request() -> None:
    parser = argparse.ArgumentParser()
    add_request_flags(parser)
    words = "--max-tokens 3 --temperature 0 --stop a --stop b --stop-token-id 4 --ignore-eos --mode split --seed 7"
    request = build_request("x", None, request_options(parser.parse_args(words.split())))
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (3, 0.0, 7)
    assert (list(request.sampling.stop), list(request.sampling.stop_token_ids)) == (["a", "b"], [4])
    assert request.sampling.ignore_eos
    assert request.mode != 0


def test_flags_not_given_ask_for_the_likeliest_answer_with_an_end_and_leave_all_else_out() -> None:
    parser = argparse.ArgumentParser()
    add_request_flags(parser)
    request = build_request("x", None, request_options(parser.parse_args([])))
    set_here = {field.name for field, _ in request.sampling.ListFields()}
    assert set_here == {"max_tokens", "temperature"}
    assert request.sampling.max_tokens == 512
    assert request.sampling.temperature == 0
    assert request.WhichOneof("input") == "text"
    assert not request.HasField("slo")
    assert request.qos_tier == request.mode == 0


@pytest.mark.parametrize(("text", "count"), [("5", 5), ("2K", 2048), ("3m", 3 << 20), ("1G", 1 << 30)])
def test_sizes_with_units(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "G", "1.5G", "many", "-5", "1_0", " 5"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"not a size; give .* such as 1500000, 512M or 2G"):
        byte_count(text)


def _completion(completion_tokens: int, first_s: float, total_s: float) -> Completion:
    return Completion(
        text="",
        token_ids=(),
        logprobs=(),
        finish_reason=FinishReason.STOP,
        stop_match=None,
        usage=Usage(prompt_tokens=40, completion_tokens=completion_tokens, cached_tokens=32),
        timings=Timings(0, 0, 0, 0, 0, 0, time_to_first_token_s=first_s, total_s=total_s),
        plan=Plan(ExecutionMode.SPLIT, "p", "d", 32, ""),
        request_id="r",
        trace_id="ab" * 16,
    )


def test_the_line_of_figures() -> None:
    line = figures(_completion(completion_tokens=11, first_s=0.05, total_s=0.55))
    assert line == f"TTFT 50 ms · 20.0 tokens/s · 11 tokens · 32 of 40 prompt tokens cached · split · trace {'ab' * 16}"


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_there_is_no_rate_of_fewer_than_two_tokens_after_the_first(tokens: int) -> None:
    completion = _completion(completion_tokens=tokens, first_s=0.05, total_s=0.55)
    assert tokens_per_second(completion) is None
    assert "tokens/s" not in figures(completion)
    assert f" · {tokens} token{'' if tokens == 1 else 's'} · " in figures(completion)
    assert tokens_per_second(_completion(completion_tokens=3, first_s=0.05, total_s=0.55)) == 4.0


def test_tokens_that_come_all_at_once_have_the_rate_of_their_worker() -> None:
    at_once = _completion(completion_tokens=9, first_s=0.065, total_s=0.066)
    completion = replace(at_once, timings=replace(at_once.timings, decode_s=0.04))
    assert tokens_per_second(completion) == pytest.approx(200)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (None, "it has written no log"),
        ("\n\n", "it has written nothing to its log"),
        ("loading\nTraceback\nValueError: x\n", "ValueError: x"),
        ("12:00 ERROR cannot start: port 1 is taken\nbye\n", "port 1 is taken"),
        ("x" * 100_000 + "\ncannot start: late\n", "late"),
        ('level=error message="cannot start: \\"a\\" is short; raise it" trace_id=1\n', '"a" is short; raise it'),
        ('{"level": "error", "message": "cannot start: no room"}\n', "no room"),
        ('message="cannot start: torn', "torn"),
    ],
)
def test_last_words(tmp_path: Path, log: str | None, words: str) -> None:
    if log is not None:
        (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log") == words
