"""`forebay up`: starts the local mesh if it is not up yet and, given a prompt, answers it."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from forebay.chips.chip_class import DECODE_DEFAULT, PREFILL_DEFAULT, WITHOUT_COMPILER, chip_class_named
from forebay.chips.fleet_file import read_fleet_file
from forebay.chips.kv_layout import layout_for
from forebay.cli.answer import show_answer, show_figures
from forebay.cli.parsing import byte_count, command_parser
from forebay.cli.program import program_name
from forebay.client import Client, Completion
from forebay.engine.native_load import native_refusal
from forebay.errors import StartError
from forebay.kv.eviction.policies import DEFAULT_POLICY, POLICIES
from forebay.mesh.inspection import ServiceStatus, inspect_mesh
from forebay.mesh.local_mesh import DEFAULT_START_TIMEOUT_S, mend_mesh, start_mesh, stop_mesh
from forebay.mesh.record import MeshRecord, read_record
from forebay.mesh.room import check_block_room
from forebay.mesh.spec import DEFAULT_PORT_BASE, MeshSpec
from forebay.mesh.state_dir import current_state_dir, locked
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model

_EXAMPLES: Final = """\
  forebay up "What is the capital of France?"
  forebay up --model ~/models/Qwen2.5-0.5B-Instruct
  forebay up --prefill 2 --decode 2 --port-base 7500"""
_MAX_TOKENS: Final = 256
_KEPT: Final = {
    "model": "model_path",
    "port_base": "port_base",
    "prefill": "prefill_count",
    "decode": "decode_count",
    "routers": "router_count",
    "tokenizers": "tokenizer_count",
    "chip_class": "chip_class",
    "threads": "threads",
    "device_bytes": "device_bytes",
    "host_bytes": "host_bytes",
    "disk_bytes": "disk_bytes",
    "eviction_policy": "eviction_policy",
    "fleet": "fleet_file",
}
"""What a running mesh keeps: arguments, and where its record has them."""
DEVICE_BYTES_HELP: Final = "KV memory that workers compute in, such as 512M or 2G (default: 512M)"
HOST_BYTES_HELP: Final = "memory for KV that must leave it and was used twice; 0: none (default: 256M)"
_CHIP_CLASS_HELP: Final = (
    "how all workers compute (default: cpu-compute for prefill and cpu-bandwidth for decode, or cpu-bf16 where there is"
    " no C++ compiler; cpu-f32 is full precision)"
)


def run(arguments: Sequence[str]) -> int:
    """Leaves the mesh running. Ctrl-C while it starts stops all that was started."""
    given = _parser().parse_args(arguments)
    if given.chip_class is not None:
        chip_class_named(given.chip_class)  # refuses an unknown one before anything is started
    if given.fleet is not None:
        given.fleet = given.fleet.resolve()
    read_fleet_file(given.fleet)  # likewise
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # a killed `up` cleans up as an interrupted one does
    state_dir = current_state_dir()
    with locked(state_dir, lambda: _say("waiting for another forebay up or down to finish")):
        record = _already_up(state_dir, given)
        if record is None:
            record = start_mesh(_spec(state_dir, given), _say, given.timeout_s)
    completion = None if given.prompt is None else _answer(record, given)
    if given.json:
        result = {"router": record.router_address, "model": str(record.model_path), "state_dir": str(state_dir)}
        print(json.dumps({**result, "completion": None if completion is None else asdict(completion)}, indent=2))
    elif completion is not None:
        show_figures(completion, program_name())
    else:
        _say(_what_next(record))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("up", "Starts the mesh on this machine and, given a prompt, answers it.", _EXAMPLES)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="asked as a chat message at temperature 0")
    parser.add_argument("--model", metavar="PATH", help="GGUF file or Hugging Face folder (default: SmolLM2-135M)")
    parser.add_argument(
        "--port-base", type=int, metavar="N", help=f"the router's port; others follow (default: {DEFAULT_PORT_BASE})"
    )
    parser.add_argument("--prefill", type=int, metavar="N", help="prefill workers (default: 1)")
    parser.add_argument("--decode", type=int, metavar="N", help="decode workers (default: 1)")
    parser.add_argument("--routers", type=int, metavar="N", help="routers, of which a caller may ask any (default: 1)")
    parser.add_argument("--tokenizers", type=int, metavar="N", help="tokenizer services (default: 1)")
    parser.add_argument("--chip-class", metavar="NAME", help=_CHIP_CLASS_HELP)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="most cores of a step (default: all, shared by the busy)"
    )
    parser.add_argument("--device-bytes", type=byte_count, metavar="SIZE", help=DEVICE_BYTES_HELP)
    parser.add_argument("--host-bytes", type=byte_count, metavar="SIZE", help=HOST_BYTES_HELP)
    parser.add_argument(
        "--disk-bytes",
        type=byte_count,
        metavar="SIZE",
        help="KV on disk, in the state folder, which outlives the mesh (default: none)",
    )
    parser.add_argument(
        "--eviction-policy",
        choices=tuple(POLICIES),
        help=f"what leaves a full KV tier first (default: {DEFAULT_POLICY}; see docs/kv-cache.md)",
    )
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="YAML with watts and price of chip classes")
    parser.add_argument("--max-tokens", type=int, default=_MAX_TOKENS, metavar="N", help="of the answer (default: 256)")
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_START_TIMEOUT_S, metavar="S", help="for the start (default: 180)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _already_up(state_dir: Path, given: argparse.Namespace) -> MeshRecord | None:
    """The mesh if it runs and is healthy, or could be mended; what is left of one that could not is stopped.

    Raises StartError if it is another mesh than the one asked for.
    """
    record = read_record(state_dir)
    if record is None:
        return None
    ill = [status for status in inspect_mesh(record) if not status.is_healthy]
    differing = [one for one in _asked(given, record) if one[1] is not None and one[1] != one[2]]
    if not ill and record.is_complete:
        if differing:
            flag, wanted, actual = differing[0]
            running = "the default" if actual is None else actual
            raise StartError(
                f"the mesh that is up has {running} for {flag}, not {wanted}; stop it first: {program_name()} down, "
                "or start a second one with another FOREBAY_STATE_DIR and --port-base"
            )
        _say(f"the mesh is up at {record.router_address} with {record.model_path.name}")
        return record
    states = ", ".join(f"{status.name} {status.health}" for status in ill) or "incomplete"
    if record.is_complete and not differing and _can_be_mended(ill):
        _say(f"the mesh that was started here is not healthy ({states})")
        _ask_as_before(given, record)
        return mend_mesh(_spec(state_dir, given), record, _say, given.timeout_s)
    _say(f"the mesh that was started here is not healthy ({states}): starting it anew")
    stop_mesh(state_dir)
    _ask_as_before(given, record)
    return None


def _can_be_mended(ill: Sequence[ServiceStatus]) -> bool:
    """By starting what is gone: a service that waits for it to come back welcomes work again by itself."""
    gone = [status for status in ill if status.health == "gone"]
    waiting = [status for status in ill if status.health == "not serving"]
    return bool(gone) and len(gone) + len(waiting) == len(ill) and all(status.name != "nats" for status in gone)


def _asked(given: argparse.Namespace, record: MeshRecord) -> list[tuple[str, Any, Any]]:
    """What can be asked for and must match a running mesh: flag, asked (None: not asked), running."""
    asked = {**vars(given), "model": None if given.model is None else resolve_model(given.model).resolve()}
    return [(f"--{name.replace('_', '-')}", asked[name], getattr(record, known)) for name, known in _KEPT.items()]


def _ask_as_before(given: argparse.Namespace, record: MeshRecord) -> None:
    """What is not said now is as it was when the mesh was started."""
    for name, known in _KEPT.items():
        if getattr(given, name) is None:
            setattr(given, name, str(record.model_path) if name == "model" else getattr(record, known))


def _spec(state_dir: Path, given: argparse.Namespace) -> MeshSpec:
    model_path = resolve_model(given.model, _say).resolve()
    chip_class = given.chip_class or _default_chip_class(model_path)
    spec = MeshSpec(
        model_path=model_path,
        state_dir=state_dir,
        threads=given.threads,
        port_base=DEFAULT_PORT_BASE if given.port_base is None else given.port_base,
        prefill_count=_count(given.prefill),
        decode_count=_count(given.decode),
        router_count=_count(given.routers),
        tokenizer_count=_count(given.tokenizers),
        chip_class=chip_class,
        device_bytes=given.device_bytes,
        host_bytes=given.host_bytes,
        disk_bytes=given.disk_bytes,
        eviction_policy=given.eviction_policy,
        fleet_file=given.fleet,
    )
    read_fleet_file(given.fleet).check_served(spec.chip_classes_of(PREFILL_DEFAULT, DECODE_DEFAULT))
    layout = layout_for(open_model(model_path).config, chip_class_named(chip_class or DECODE_DEFAULT))
    check_block_room(spec, layout.block_bytes)
    return spec


def _count(asked: int | None) -> int:
    return 1 if asked is None else asked


def _default_chip_class(model_path: Path) -> str | None:
    """None: each service's own, which takes the native kernels."""
    refusal = native_refusal(open_model(model_path), _say)
    if refusal is None:
        return None
    _say(f"without native kernels: {refusal}")
    _say(f"the workers compute with torch instead, several times slower (chip class {WITHOUT_COMPILER})")
    return WITHOUT_COMPILER


def _answer(record: MeshRecord, given: argparse.Namespace) -> Completion:
    with Client(record.router_address) as client:
        stream = client.stream(
            messages=[{"role": "user", "content": given.prompt}], temperature=0.0, max_tokens=given.max_tokens
        )
        return show_answer(stream, sys.stderr if given.json else sys.stdout)


def _what_next(record: MeshRecord) -> str:
    program = program_name()
    return (
        f"the mesh serves {record.model_path.name} at {record.router_address}; next:\n"
        f'  {program} chat "What is the capital of France?"\n'
        f"  {program} status\n"
        f"  {program} down"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
