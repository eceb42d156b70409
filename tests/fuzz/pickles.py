"""Hostile pickles of up to 2 MB, alone and as files of torch.save: nothing is run, time and memory are bounded.

A third are techniques of known attacks, a third programs of random opcodes, and a third few opcodes in great number,
which would take quadratic time or much memory.
"""

import pickle
import pickletools
import struct
import sys
import tempfile
import time
import zipfile

from megabert.checkpoints.files.pickle_reader import read_pickle
from megabert.checkpoints.files.weight_files import open_file
from megabert.errors import MegabertError
from tests.checkpoints.files.test_weight_files import techniques, text
from tests.fuzz.bytes import damaged

NUM, NUM_IN_TESTS = 2_000, 40
LARGEST = 2_000_000
MOST_CPU_SECONDS = 10  # of a file of 2 MB; two on a machine of its own
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
MODULUS = 2**61 - 1  # of the hash of integers
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    b"X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\1tQK\0K\1\x85K\1\x85\x89}tR"
)
PIECES = [
    *OPCODES, b"K\1", b"M\1\2", b"]", b"}", b"(", b")", b"\x85", b"h\0", b"q\0", b"h\1", b"q\1", b"N", b"NNs", b"Na",
    b")R",
    b"S'a\\n'\n", b"I1\n", b"F1.5\n", b"V\\u0041\n", b"X\3\0\0\0abc", b"cos\nsystem\n", b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n", b"X\6\0\0\0latin1", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    TENSOR,
]  # fmt: skip


def known_attack(random):
    protocol = random.choice((2, 3, 4, 5))
    body = random.choice(list(techniques(protocol).values()))
    data = bytes([0x80, protocol]) + text("weights") + body + b"\x86."
    return damaged(data, random) if random.random() < 0.5 else data


def random_program(random):
    pieces = [
        random.choice(PIECES) if random.random() < 0.9 else random.randbytes(3) for _ in range(random.randint(1, 60))
    ]
    return b"\x80\x02" + b"".join(pieces) + b"."


def many(random):
    """Repeat some opcodes, between others."""
    unit = b"".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))
    if random.random() < 0.3:
        unit = None
    begin = b"".join(random.choice(PIECES) for _ in range(random.randint(0, 3))) + random.choice(
        (b"", b"(", b"]q\0(", b"}q\0(")
    )
    end = random.choice((b"l.", b"t.", b"d.", b"u.", b"e.", b"\x90.", b"."))
    size = random.choice((10_000, 100_000, LARGEST))
    if unit is not None:
        return b"\x80\x02" + begin + unit * (size // len(unit)) + end
    kind = random.choice(("integers", "entries", "memo", "text", "quoted", "floats", "tuples"))
    step = random.choice((1, MODULUS, 2**32, 2**20))
    numbers = range(size // 12)
    body = {
        "integers": lambda: b"".join(
            b"\x8a\x09" + (number * step % 2**63).to_bytes(9, "little") + b"N" for number in numbers
        ),
        "entries": lambda: b"".join(b"I%d\nN" % (number * step) for number in numbers),
        "memo": lambda: b"N" + b"".join(b"p%d\n" % (number * step) for number in numbers),
        "text": lambda: b"X" + struct.pack("<I", size) + b"a" * size,
        "quoted": lambda: b"S'" + random.choice((b"a", b"\\n", b"\\x00", b"\\")) * (size // 4) + b"'\n",
        "floats": lambda: b"F" + b"1" * size + b"\n",
        "tuples": lambda: b"".join(b"I%d\n\x85N" % (number * step) for number in numbers),
    }[kind]()
    return b"\x80\x02}" + b"(" + body + random.choice((b"u.", b"l.", b"."))


def prepare(folder):
    for make in (known_attack, random_program):  # imports and codecs
        for number in range(200):
            outcome(make(__import__("random").Random(number)), folder / "x")
    events = []
    path = str(folder)

    def watch(event, arguments):
        first = str(arguments[0]) if arguments else ""
        is_allowed = event == "open" and first.startswith((path, "/proc", tempfile.gettempdir()))
        if event in ("exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect", "marshal.loads",
                     "pickle.find_class", "os.exec",
                     "os.posix_spawn") or (event == "open" and not is_allowed):  # fmt: skip
            events.append(f"{event} {first}")

    sys.addaudithook(watch)
    return folder / "x", events


def outcome(data, file):
    try:
        read_pickle(data, source="x", persistent_id=lambda identity: None)
        file.write_bytes(data)
        open_file(file)
    except MegabertError:
        return "refused"
    return "read"


def run(state, random):
    file, events = state
    data = random.choice((known_attack, random_program, many))(random)
    form = random.choice(("alone", "zip", "legacy"))
    started = time.process_time()
    try:
        if form == "alone":
            read_pickle(data, source="x", persistent_id=lambda identity: None)
        else:
            write(file, data, form)
            started = time.process_time()
            open_file(file)
        result = "read"
    except MegabertError:
        result = "refused"
    assert not events, events
    seconds = time.process_time() - started
    assert seconds < MOST_CPU_SECONDS, f"{seconds:.1f} s for {data[:40]!r}"
    return f"{form}: {result}"


def write(file, data, form):
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", data)
            archive.writestr("a/data/0", bytes(4))
    else:
        head = (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        )
        file.write_bytes(head + data + pickle.dumps(["0"], 2) + (1).to_bytes(8, "little") + bytes(4))
