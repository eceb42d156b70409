import subprocess
import sys
from pathlib import Path

from tests.checkpoint.test_nemo import CONFIGS
from tests.checkpoint.test_tar_archive import HOSTILE
from tests.checkpoint.weight_files import write_zip

ROOT = Path(__file__).parents[2]


def test_no_damage_passes_for_a_checkpoint_and_none_breaks_a_reader():
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.fuzz"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "{'refused': 2000}" in done.stdout


WATCH = """
import os, sys
from pathlib import Path
from megabert.checkpoint.foreign import open_checkpoint
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
        "os.system", "os.exec", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.posix_spawn"):
        seen.append((event, repr(arguments)[:80]))
sys.addaudithook(watch)
refused = 0
for path in sorted((folder / "hostile").iterdir()):
    try: open_checkpoint(path)
    except MegabertError: refused += 1
    else: print("opened", path.name)
print(refused, seen)
"""


def test_hostile_archives_and_configurations_run_import_and_write_nothing(tmp_path):
    import io
    import pickle

    import yaml

    from tests.checkpoint.test_nemo import CONFIG, pack, saved

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'marker')!r}, 'w')",)

    for name in ("warm", "hostile"):
        (tmp_path / name).mkdir()
    weights = saved({"model.x": 1})
    pack(tmp_path / "warm" / "a", {"model_config.yaml": yaml.dump(CONFIG), "model_weights.ckpt": weights})
    pack(tmp_path / "warm" / "b", {"model_config.yaml": "[", "model_weights.ckpt": weights})
    (tmp_path / "warm" / "c").write_bytes(HOSTILE["a bomb"])
    evil = pickle.dumps(Evil())
    hostile = tmp_path / "hostile"
    for number, data in enumerate(HOSTILE.values()):
        (hostile / f"tar-{number}").write_bytes(data)
    for number, config in enumerate(CONFIGS.values()):
        pack(hostile / f"config-{number}", {"model_config.yaml": config, "model_weights.ckpt": weights})
    names = ["../evil.pt", "/tmp/evil.pt", "a/../../evil.pt", "evil.pt", "x/evil.pt", "model/data.pkl", "model/code/a.py",
             "..\\evil.pt", "archive/data.pkl", "archive/data/0", "a.pt/b.pt", "\u202etp.pt", "con.pt", "a//b.pt", ".pt",
             "__main__.py", "sitecustomize.py", "conftest.py", "x.pth", "x.so"]  # fmt: skip
    for number, name in enumerate(names):
        write_zip(hostile / f"zip-{number}", {name: evil})
        write_zip(hostile / f"double-{number}", {name: evil, "other/data.pkl": evil})
    for number, name in enumerate(names[:10]):
        buffer = io.BytesIO()
        write_zip(buffer, {"archive/data.pkl": evil, "archive/version": b"3"})
        pack(
            hostile / f"nemo-{number}",
            {"model_config.yaml": "a: 1", "model_weights.ckpt": buffer.getvalue(), f"x{name}": evil},
        )
    done = subprocess.run([sys.executable, "-c", WATCH, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    count = len(list(hostile.iterdir()))
    assert count >= 160
    assert done.stdout.splitlines() == [f"{count} []"], done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile", "warm"]
