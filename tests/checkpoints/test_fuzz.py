import json
import pickle
import subprocess
import sys
from pathlib import Path

import yaml

from tests.checkpoints.files.test_tar_archive import HOSTILE
from tests.checkpoints.nemo.test_open_nemo import CONFIG, pack, saved
from tests.checkpoints.nemo.test_open_nemo import CONFIGS as YAML
from tests.checkpoints.test_damage import CONFIGS as JSON
from tests.checkpoints.test_damage import INVALID_JSON
from tests.checkpoints.weight_files import write_zip

ROOT = Path(__file__).parents[2]
SUITES = ["archives", "documents", "downloads", "flips", "mutations", "pickles"]
SIZES = {"model_type": "megatron-bert", "vocab_size": 50, "num_hidden_layers": 4, "hidden_size": 16,
         "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 12}  # fmt: skip


def test_damaged_and_hostile_input_is_refused_or_read_within_bounds():
    command = [sys.executable, "-m", "tests.fuzz", "--share", "tests", *SUITES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["suite"] for report in reports] == SUITES
    assert all(report["cases"] >= 12 for report in reports)
    assert reports[SUITES.index("flips")]["outcomes"] == {"refused": 400}


WATCH = """
import os, sys
from pathlib import Path
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import MegabertError
folder = Path(sys.argv[1])
for path in sorted((folder / "warm").iterdir()):
    try: open_checkpoint(path)
    except MegabertError: pass
allowed_modules = set(sys.modules)
seen = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((event, str(arguments[0])))
    elif event == "import" and arguments[0] not in allowed_modules:
        seen.append((event, arguments[0]))
    elif event.split(".")[0] in ("subprocess", "socket", "shutil", "ctypes", "exec", "compile", "pty") or event in (
        "os.system", "os.exec", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink",
        "os.posix_spawn"):
        seen.append((event, repr(arguments)[:80]))
sys.addaudithook(watch)
refused = 0
for path in sorted((folder / "hostile").iterdir()):
    try: open_checkpoint(path)
    except MegabertError: refused += 1
    else: print("opened", path.name)
print(refused, seen)
"""


NAMES = [
    *("../evil.pt", "/tmp/evil.pt", "a/../../evil.pt", "evil.pt", "x/evil.pt", "model/data.pkl", "model/code/a.py"),
    *("..\\evil.pt", "archive/data.pkl", "archive/data/0", "a.pt/b.pt", "\u202etp.pt", "con.pt", "a//b.pt", ".pt"),
    *("__main__.py", "sitecustomize.py", "conftest.py", "x.pth", "x.so"),
]


def write_hostile(folder, evil, weights):
    """Fill a folder with archives and configurations that try to do harm; returns their number."""
    for number, data in enumerate(HOSTILE.values()):
        (folder / f"tar-{number}").write_bytes(data)
    for number, name in enumerate(NAMES):
        write_zip(folder / f"zip-{number}", {name: evil})
        write_zip(folder / f"double-{number}", {name: evil, "other/data.pkl": evil})
        members = {"model_config.yaml": "a: 1", "model_weights.ckpt": evil, f"x{name}": evil}
        pack(folder / f"nemo-{number}", members)
    for number, config in enumerate(YAML.values()):
        pack(folder / f"yaml-{number}", {"model_config.yaml": config, "model_weights.ckpt": weights})
    strings = [*INVALID_JSON.values(), *(json.dumps(SIZES | change) for change in JSON.values())]
    for number, text in enumerate(strings):
        (folder / f"json-{number}").mkdir()
        (folder / f"json-{number}" / "config.json").write_text(text)
        (folder / f"json-{number}" / "pytorch_model.bin").write_bytes(evil)
    assert len(HOSTILE) + 3 * len(NAMES) >= 100
    assert len(YAML) + len(strings) >= 60
    return len(list(folder.iterdir()))


def test_hostile_archives_and_configurations_run_import_and_write_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'marker')!r}, 'w')",)

    for name in ("warm", "hostile"):
        (tmp_path / name).mkdir()
    weights = saved({"model.x": 1})
    # Imports of megabert itself happen before the audit begins.
    pack(tmp_path / "warm" / "a", {"model_config.yaml": yaml.dump(CONFIG), "model_weights.ckpt": weights})
    pack(tmp_path / "warm" / "b", {"model_config.yaml": "[", "model_weights.ckpt": weights})
    (tmp_path / "warm" / "c").write_bytes(HOSTILE["a bomb"])
    count = write_hostile(tmp_path / "hostile", pickle.dumps(Evil()), weights)
    done = subprocess.run([sys.executable, "-c", WATCH, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{count} []"], done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile", "warm"]
